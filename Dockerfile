# Everything `make`, `make compare`, `make test` and the notebook need, on the CPU. The project itself is
# not in the image: `make jupyter` and `make sh` mount it at /workspace.
FROM debian:bookworm-slim

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV DEBIAN_FRONTEND=noninteractive LANG=C.UTF-8

# Beside what tools/deps.sh installs: make to call it, git for the commit noted with a run, the programs
# that draw figures and graphs, the library of the demo's web server, Python for the notebook.
COPY tools/deps.sh /opt/deps.sh
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl git gnuplot-nox graphviz libmicrohttpd-dev \
      make python3 python3-venv tini \
 && /opt/deps.sh \
 && rm -rf /var/lib/apt/lists/*

COPY requirements.txt /opt/requirements.txt
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir -r /opt/requirements.txt
ENV PATH=/opt/venv/bin:$PATH

# The user has the numbers of the one who builds, so that files in the mounted project stay theirs.
# /workspace/build is theirs too: a volume is mounted there, apart from what the host compiled.
ARG UID=1000
ARG GID=1000
RUN groupadd --non-unique --gid "$GID" appuser \
 && useradd --non-unique --no-log-init --uid "$UID" --gid "$GID" --create-home --shell /bin/bash appuser \
 && install -d -o "$UID" -g "$GID" /workspace /workspace/build \
 && git config --system --add safe.directory /workspace
USER $UID:$GID
WORKDIR /workspace

EXPOSE 8888
ENTRYPOINT ["/usr/bin/tini", "--"]
# No token: docker.mk publishes the port on the host's loopback only. allow_remote_access=False still lets
# localhost in and refuses other host names, so that no web page can reach the server under its own name.
CMD ["jupyter", "lab", "--ip=0.0.0.0", "--port=8888", "--no-browser", "--IdentityProvider.token=", \
     "--ServerApp.allow_remote_access=False", "--LabApp.default_url=/lab/tree/examples/comparison.ipynb"]
