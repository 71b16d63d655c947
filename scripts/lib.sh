# Shared by the scripts beside it: where things are, how they speak, how they stop.
# Sourced, never run.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# Downloaded kernel and built guest image. Inside the build folder: not committed, goes with it.
GUEST_DIR=${LAMINA_GUEST_DIR:-$ROOT/build/guest}

say() { printf '%s: %s\n' "${0##*/}" "$*"; }

die() {
  printf '%s: error: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# True where lamina-spdk can be built.
spdk_found() {
  [ -e "${SPDK_DIR:-/nonexistent}/build/include/spdk/bdev_module.h" ] ||
    { have pkg-config && pkg-config --exists spdk_event; }
}

# Seconds since the Epoch with milliseconds, without a process.
now() { printf '%s' "${EPOCHREALTIME/,/.}"; }

# since START: seconds since then, one decimal.
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }

# No script may stop without a word: under `set -e` the command that failed is named.
set -E
trap 'printf "%s: error: line %s: %s: failed with status %s\n" \
  "${BASH_SOURCE[0]##*/}" "$LINENO" "$BASH_COMMAND" "$?" >&2' ERR
