#!/bin/sh
# Dispatch a job through the queue and wait for its end: sh dispatch.sh [JOB]
# Needs redis-cli. Replies are read as they are printed, one field or value a line.
set -eu
url=${REDIS_URL:-redis://127.0.0.1:6379/0}
redis() { redis-cli -u "$url" --raw "$@"; }

last=$(redis XREVRANGE '{dispatch}:replies' + - COUNT 1 | head -n 1)
id=$(redis XADD '{dispatch}:requests' '*' job "${1:-demo-render}" payload hello meta '{"who":"redis-cli"}')
echo "sent $id"

while :; do
  # The stream's name, then the entry's ID, then its fields and values.
  reply=$(redis XREAD COUNT 1 BLOCK 5000 STREAMS '{dispatch}:replies' "${last:-0}" | tail -n +2)
  [ -n "$reply" ] || continue
  last=$(echo "$reply" | head -n 1)
  value() { echo "$reply" | awk -v name="$1" 'NR % 2 == 0 && $0 == name { getline; print; exit }'; }
  [ "$(value id)" = "$id" ] && [ "$(value stream)" = requests ] || continue
  echo "$(value type) $(value dispatched_job_id)"
  [ "$(value final)" = 1 ] || continue
  echo "$(value verdict) $(value exit_code) $(value error_message)"
  [ "$(value verdict)" = succeeded ] && exit 0
  code=$(value exit_code)
  exit "${code:-1}"
done
