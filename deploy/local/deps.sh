#!/bin/sh
# Installs packages that are missing, named as Debian names them, where apt-get is there and asks nothing. Elsewhere it
# says what to install. For `make deps`.
set -eu

if [ $# -eq 0 ]; then
  echo "PostgreSQL and Redis are installed. Nothing else is needed."
  exit 0
fi

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

if ! command -v apt-get >/dev/null; then
  fail "Missing: $*. Install PostgreSQL 14 or newer and Redis 6.2 or newer with your system (Fedora: dnf install postgresql-server redis; macOS: brew install postgresql@17 redis), then try again."
fi
as=
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null || ! sudo -n true 2>/dev/null; then
    fail "Missing: $*. Install them, and then try again: sudo apt-get install $*"
  fi
  as="sudo -n"
fi
echo "Installing with apt-get, for the tests and for make up: $*. (Your system may start them as services. Nothing here uses those.)"
$as env DEBIAN_FRONTEND=noninteractive apt-get update -q
$as env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
