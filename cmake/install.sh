#!/bin/sh
# install.sh PYTHON NAME=VALUE...: an editable install with these CMake options, built in
# build/Release. Shows the steps of the build as Ninja counts them, or the first error; all that was
# said is in build/install.log.
python=$1
shift
options=""
for option in "$@"; do
  options="$options -C cmake.define.$option"
done
log=build/install.log
mkdir -p build
# shellcheck disable=SC2086 — no option holds a space
"$python" -m pip install -v --disable-pip-version-check --no-build-isolation --no-deps $options -e . 2>&1 |
  tee "$log" | sed -un 's/^ *\(\[[0-9]*\/[0-9]*\] [A-Za-z].*\)/\1/p'
grep -q '^Successfully installed' "$log" && exit 0
# The first object that failed, without its command line, or what CMake or pip stumbled over.
awk '/FAILED: / { on = 1 } on && /^ *(\[[0-9]+\/|ninja: )/ { exit } on' "$log" |
  grep -v ' -o ' | head -n 25 | grep . ||
  sed -n '/CMake Error/,/Configuring incomplete/p' "$log" | head -n 25 | grep . ||
  grep -i -m1 -A25 'error' "$log" || tail -n 25 "$log"
echo "The whole log: $log"
exit 1
