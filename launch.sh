#!/usr/bin/env bash
# The only thing a user types. Makes .venv from requirements.lock when it is missing or stale, then runs the command.
# For developers: MOOTRON_PYTHON=/path/to/python uses that interpreter as it is and makes no .venv.
set -euo pipefail

project_root() {
  local file=${BASH_SOURCE[0]} folder
  while [ -L "$file" ]; do
    folder=$(cd -P "$(dirname "$file")" && pwd)
    file=$(readlink "$file")
    case $file in /*) ;; *) file=$folder/$file ;; esac
  done
  cd -P "$(dirname "$file")" && pwd
}

root=$(project_root)
venv=$root/.venv
lock=$root/requirements.lock
done_mark=$venv/installed.lock # what was installed: the interpreter's version and the lock, written last

say() { printf 'mootron: %s\n' "$*" >&2; }

stamp() { "$1" -V && cat "$lock"; }

is_fresh() { [ -x "$venv/bin/python" ] && [ -f "$done_mark" ] && stamp "$venv/bin/python" 2>&1 | cmp -s - "$done_mark"; }

find_python() {
  local name
  for name in python3 python3.13 python3.12 python3.11 python; do
    if "$name" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
  say "needs Python 3.11, 3.12 or 3.13 with venv, and found none on PATH; install one (Debian, Ubuntu: apt install python3-venv)"
  exit 2
}

# Two pips at once, because one is busy on one core: the large wheels of torch and its CUDA libraries, and all the rest.
install_packages() {
  local large='^(torch|torchvision|triton|nvidia-[a-z0-9-]+)==' first second failed=0
  grep -E "$large" "$lock" >"$venv/large.txt"
  grep -Ev "$large" "$lock" >"$venv/rest.txt"
  local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps --no-compile)
  "${pip[@]}" -r "$venv/large.txt" >"$venv/large.log" 2>&1 &
  first=$!
  "${pip[@]}" -r "$venv/rest.txt" >"$venv/rest.log" 2>&1 &
  second=$!
  trap 'kill "$first" "$second" 2>/dev/null; exit 130' INT TERM
  while kill -0 "$first" 2>/dev/null || kill -0 "$second" 2>/dev/null; do
    show_progress
    sleep 1
  done
  wait "$first" || failed=1
  wait "$second" || failed=1
  trap - INT TERM
  [ ! -t 2 ] || printf '\n' >&2
  if [ "$failed" = 1 ]; then
    say "packages could not be installed; the end of pip's messages:"
    tail -n 8 "$venv/large.log" "$venv/rest.log" >&2
    say "check the network and the free disk space (10 GB, of which .venv keeps 7), then run the same command again"
    exit 1
  fi
}

show_progress() {
  local have=("$venv"/lib/python*/site-packages/*.dist-info) all
  all=$(grep -c '==' "$lock")
  if [ -t 2 ]; then
    printf '\rmootron: %d of about %d packages installed, %d s ' "${#have[@]}" "$all" "$SECONDS" >&2
  elif [ $((SECONDS % 30)) = 0 ]; then
    say "${#have[@]} of about $all packages installed, $SECONDS s"
  fi
}

set_up() {
  local python
  is_fresh && return # another set-up made it while this one waited
  python=$(find_python)
  say "first use: making .venv with $("$python" -V) from requirements.lock (some minutes; needs the network and 10 GB of disk)"
  SECONDS=0
  "$python" -m venv --clear "$venv"
  install_packages
  stamp "$venv/bin/python" >"$done_mark.new"
  mv "$done_mark.new" "$done_mark"
  say "set up in $SECONDS s"
}

# One set-up at a time. The lock is the project's folder itself, so nothing is left behind.
set_up_alone() {
  if command -v flock >/dev/null; then
    flock -n 9 || { say "another set-up is at work; waiting for it" && flock 9; }
  fi
  set_up
}

if [ -n "${MOOTRON_PYTHON:-}" ]; then
  python=$MOOTRON_PYTHON
else
  is_fresh || (set_up_alone) 9<"$root"
  python=$venv/bin/python
fi

# Packages are installed uncompiled, which halves the set-up; their bytecode is kept when each is first imported.
unset PYTHONDONTWRITEBYTECODE

# -P keeps the folder the user stands in out of Python's path; the project's own is first on it.
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} exec "$python" -P -m cluster "$@"
