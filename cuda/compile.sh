# compile.sh LOG NVCC ARGUMENT...: runs nvcc and keeps what it says in LOG. What ptxas remarks of
# wgmma and setmaxnreg (C75xx: made serial, ignored) would be a slow kernel: an error.
log=$1
shift
if "$@" 2> "$log" && ! grep -q '(C75[0-9][0-9])' "$log"; then
  exit 0
fi
cat "$log"
exit 1
