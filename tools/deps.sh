#!/bin/sh
# Installs what the build lacks on Debian and Ubuntu; elsewhere says what to install.
#   tools/deps.sh [--check]     --check: only report
set -eu
need=''
lacks_program() { ! command -v "$1" >/dev/null 2>&1; }
lacks_header() { ! printf '#include <%s>\n' "$1" | ${CC:-cc} -E -x c - >/dev/null 2>&1; }
want() { need="$need $1"; }

lacks_program "${CC:-cc}" && want gcc && want libc6-dev
lacks_program make && want make
lacks_program flex && want flex
lacks_program bison && want bison
lacks_program ar && want binutils
lacks_program gnuplot && want gnuplot-nox
if lacks_program "${CC:-cc}"; then
    want libjansson-dev; want libutf8proc-dev; want zlib1g-dev; want libcmocka-dev; want libmicrohttpd-dev
else
    lacks_header jansson.h && want libjansson-dev
    lacks_header utf8proc.h && want libutf8proc-dev
    lacks_header zlib.h && want zlib1g-dev
    lacks_header microhttpd.h && want libmicrohttpd-dev
    printf '#include <stdarg.h>\n#include <stddef.h>\n#include <setjmp.h>\n#include <stdint.h>\n#include <cmocka.h>\n' |
        ${CC:-cc} -E -x c - >/dev/null 2>&1 || want libcmocka-dev
fi
[ -n "$need" ] || exit 0
echo "missing packages:$need" >&2
[ "${1-}" != --check ] || exit 1
if ! command -v apt-get >/dev/null 2>&1; then
    echo "install these with your package manager (the names are Debian's) and run make again" >&2
    exit 1
fi
sudo=''
if [ "$(id -u)" != 0 ]; then
    if lacks_program sudo; then
        echo "run as root: apt-get install$need" >&2
        exit 1
    fi
    sudo=sudo
fi
$sudo apt-get update -qq
# shellcheck disable=SC2086
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $need >/dev/null
