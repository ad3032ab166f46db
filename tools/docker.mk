# ---- Docker: make build, jupyter, sh, stop; GPU=1 for the image with CUDA ----
#
# The project is mounted at /workspace, so runs, figures and metrics stay on the host. build/ is not
# shared: a volume that lives as long as the container hides it, since the host's objects may be of
# another system. DOCKER_ARGS goes to `docker run`: make sh DOCKER_ARGS='-p 127.0.0.1:8080:8080', and in it
# make demo BIND=0.0.0.0.

DOCKER    ?= docker
PORT      ?= 8888
LABEL     := p4_bert_vs_lora_vs_adapters
IMAGE     := $(LABEL)$(if $(GPU),:gpu)
CONTAINER := bert_peft$(if $(GPU),_gpu)
# Root's files are left to the image's default user: nothing in the container runs as root.
USER_ARGS  = $(if $(filter-out 0,$(shell id -u)),--build-arg UID=$$(id -u) --build-arg GID=$$(id -g))
MOUNTS    := -v "$(CURDIR)":/workspace -v /workspace/build
RUN_IN     = $(DOCKER) run --rm --label $(LABEL) $(if $(GPU),--gpus all) $(MOUNTS) $(DOCKER_ARGS)
# Mount points must exist, or the engine makes them root's.
READY      = mkdir -p build
RUNNING    = [ -n "$$($(DOCKER) ps -q --filter name='^$(CONTAINER)$$')" ]

.PHONY: build jupyter sh stop
build:
	$(DOCKER) build $(USER_ARGS) -f Dockerfile$(if $(GPU),.gpu) -t $(IMAGE) .

jupyter:
	@$(READY)
	@if $(RUNNING); then echo "$(CONTAINER) is running"; else \
	  $(RUN_IN) -d -p 127.0.0.1:$(PORT):8888 --name $(CONTAINER) $(IMAGE) >/dev/null; fi
	@echo "open http://localhost:$(PORT); make stop ends it"

# In the container of `make jupyter` when it runs, else in one of its own.
sh:
	@$(READY)
	@if $(RUNNING); then $(DOCKER) exec -it $(CONTAINER) bash; else $(RUN_IN) -it $(IMAGE) bash; fi

# Every container of the project, with and without GPU.
stop:
	@containers=$$($(DOCKER) ps -q --filter label=$(LABEL)); [ -z "$$containers" ] || $(DOCKER) stop $$containers
