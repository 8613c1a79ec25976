#!/bin/sh
# Starts a Redis Cluster of three servers on this machine, for a try. It ends, with all its data, by
# Ctrl-C.
#
#     examples/cluster.sh               # on the ports 7000, 7001 and 7002
#     PORT=8000 examples/cluster.sh     # on others
set -eu
first=${PORT:-7000}
folder=$(mktemp -d)
servers=
trap 'kill $servers 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
trap 'exit 0' INT TERM

addresses=
for port in $first $((first + 1)) $((first + 2)); do
    mkdir "$folder/$port"
    redis-server --port "$port" --bind 127.0.0.1 --dir "$folder/$port" --save '' \
        --cluster-enabled yes >"$folder/$port/log" &
    servers="$servers $!"
    addresses="$addresses 127.0.0.1:$port"
done
for server in $servers; do
    port=$first first=$((first + 1))
    until redis-cli -p "$port" ping >/dev/null 2>&1; do
        kill -0 "$server" 2>/dev/null || { tail -n 3 "$folder/$port/log" >&2; exit 1; }
        sleep 0.1
    done
done
# Unquoted: each is an argument.
redis-cli --cluster create $addresses --cluster-yes >"$folder/log" || { cat "$folder/log" >&2; exit 1; }

echo "A cluster of three primaries. In another terminal:

  REDIS_CLUSTER=$(echo $addresses | tr ' ' ',') cargo run --example quickstart

Ctrl-C ends it."
wait
