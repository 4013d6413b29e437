#!/bin/sh
# A cluster on this machine: three nodes with two workers each, every one a process of its own, with certificates. It runs
# until Ctrl-C, which stops everything. A process that ends by itself, or that you kill, is started again after some
# seconds: so you can see what the others do without it. For `make cluster`, and, with a PostgreSQL and a Redis of its own
# and in the background, for `make up` and `make down`; runs in sh and in bash.
set -eu

usage() {
  cat <<'END'
usage: cluster.sh [--data DIR] [--port N] [--workers N] [--muster FILE] [--servers FILE] [--up | --down]

  --data DIR     certificates, data and logs; kept between runs (default: bin/cluster-data)
  --port N       the nodes take N to N+29 of 127.0.0.1, ten each: API, Raft, gossip (default: 8080)
  --workers N    workers for each node (default: 2)
  --muster FILE  the binary (default: bin/muster)
  --servers FILE run a PostgreSQL and a Redis for the cluster with this program (internal/servers/run)
  --up           in the background; again, it starts what does not run, and says what does
  --down         stop what --up has started; the data stays

Without --servers, the nodes use the servers that MUSTER_POSTGRES and MUSTER_REDIS name, if they are set.
END
}

say() { printf '%s\n' "$*"; }
fail() {
  printf 'cluster.sh: %s\n' "$*" >&2
  exit 1
}

data=bin/cluster-data port=8080 each=2 muster=bin/muster servers= mode=
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --up | --down)
      mode=${1#--}
      shift
      continue
      ;;
    --data | --port | --workers | --muster | --servers) [ $# -gt 1 ] || fail "$1 needs a value" ;;
    *) usage >&2 && fail "there is no $1" ;;
  esac
  case $1 in
    --data) data=$2 ;;
    --port) port=$2 ;;
    --workers) each=$2 ;;
    --muster) muster=$2 ;;
    --servers) servers=$2 ;;
  esac
  shift 2
done
case $port in '' | *[!0-9]*) fail "--port: $port is not a number" ;; esac
case $each in '' | *[!0-9]*) fail "--workers: $each is not a number" ;; esac
[ "$port" -ge 1 ] && [ "$port" -le 65506 ] || fail "--port: $port leaves no room for 30 ports; use 1024 to 65506"
[ "$mode" = down ] || [ -x "$muster" ] || fail "there is no $muster; make build makes it"

[ -z "$servers" ] || [ -x "$servers" ] || fail "there is no $servers; make up makes it"

umask 077
mkdir -p "$data/logs"
data=$(cd "$data" && pwd)
tls=$data/tls
stores=$data/stores
host=127.0.0.1
n1=$host:$port n2=$host:$((port + 10)) n3=$host:$((port + 20))
join=$n1,$n2,$n3

# pid_in FILE is the process that a file names, if it lives. One that ended may wait for its parent for ever.
pid_in() {
  [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null && ! grep -qs '^State:.*Z' "/proc/$(cat "$1")/status" && cat "$1"
}

# show says how to use the cluster and what runs.
show() {
  cat <<END

The cluster runs: nodes n1, n2, n3 and $((3 * each)) workers$([ ! -d "$stores" ] || echo ', PostgreSQL and Redis'). In another terminal:

    export MUSTER_ADDRESS=$join
    export MUSTER_CA=$tls/ca.crt
    export MUSTER_TOKEN_FILE=$tls/admin.token

    $muster cluster status
    $muster apply -f examples/heartbeat.yaml
    $muster run list

The processes, for kill -9; a node or a worker that you kill is started again after 5 seconds:

END
  for name in $nodes $workers; do printf '    %-4s %s\n' "$name" "$(pid_in "$data/$name.pid" || echo 'ended, is started again')"; done
  if [ -d "$stores" ]; then
    printf '    %s %s\n' PostgreSQL "$(pid_in "$stores/postgres/pid" || echo 'does not run')" Redis "$(pid_in "$stores/redis/pid" || echo 'does not run')"
  fi
}

# nodes and workers are names; of each the variable pid_NAME is its process.
nodes="n1 n2 n3" workers=
i=0
while [ "$i" -lt $((3 * each)) ]; do
  i=$((i + 1))
  workers="$workers w$i"
done

if [ "$mode" = down ]; then
  pid=$(pid_in "$data/pid") || pid=$(pid_in "$stores/pid") || { say "No cluster runs in $data." && exit 0; }
  say "Stopping the cluster in $data"
  kill -TERM "$pid"
  end=$(($(date +%s) + 120))
  while pid_in "$data/pid" || pid_in "$stores/pid"; do
    [ "$(date +%s)" -lt "$end" ] || fail "it does not stop; its log is $data/logs/up.log"
    sleep 0.2
  done >/dev/null
  say "Stopped. The data is kept: make up goes on with it, rm -r $data removes it."
  exit 0
fi

if [ "$mode" = up ]; then
  log=$data/logs/up.log
  if pid_in "$data/pid" >/dev/null; then
    say "The cluster in $data runs already."
    if pid=$(pid_in "$stores/pid"); then
      kill -HUP "$pid" # PostgreSQL and Redis start again, if they do not run
      sleep 0.5
      end=$(($(date +%s) + 60))
      until { pid_in "$stores/postgres/pid" && pid_in "$stores/redis/pid"; } >/dev/null || [ "$(date +%s)" -ge "$end" ]; do sleep 0.2; done
    elif [ -d "$stores" ]; then
      say "The process that ran its PostgreSQL and Redis is gone: make down, and then make up."
    fi
  else
    rm -f "$log"
    nohup sh "$0" --data "$data" --port "$port" --workers "$each" --muster "$muster" ${servers:+--servers "$servers"} </dev/null >"$log" 2>&1 &
    pid=$!
    say "Starting, in the background"
    until grep -q '^Logs are in' "$log" 2>/dev/null; do
      kill -0 "$pid" 2>/dev/null || { cat "$log" >&2 && fail "the cluster could not be started"; }
      sleep 0.2
    done
  fi
  show
  say
  say "Logs are in $data/logs, data beside them. make down stops everything and keeps the data."
  exit 0
fi

if [ -n "$servers" ]; then
  # The servers' users have to pass.
  if [ "$(id -u)" = 0 ]; then chmod 711 "$data"; fi
  exec "$servers" --dir "$stores" sh "$0" --data "$data" --port "$port" --workers "$each" --muster "$muster"
fi

# What is meant for your own commands is not for these processes: they are told all that they need. The nodes are told of
# PostgreSQL and Redis in variables, because everybody on this machine can read command lines.
postgres=${MUSTER_POSTGRES:-} redis=${MUSTER_REDIS:-}
for v in $(env | sed -n 's/^\(MUSTER_[A-Z0-9_]*\)=.*/\1/p'); do unset "$v"; done

if pid=$(pid_in "$data/pid"); then
  fail "process $pid runs this cluster already; stop it, use another --data and --port, or remove $data/pid if that is another program"
fi

# The nodes remember each other's addresses, so all of them cannot move at once.
if [ -f "$data/port" ]; then
  was=$(cat "$data/port")
  [ "$was" = "$port" ] || fail "the cluster in $data has the ports from $was on, not from $port; use that, or another --data"
fi
if [ ! -d "$tls" ]; then
  "$muster" cluster init --dir "$tls" --name local --node "n1=$host,localhost" --node "n2=$host,localhost" --node "n3=$host,localhost" \
    >"$data/logs/init.log" 2>&1 || { cat "$data/logs/init.log" >&2 && fail "the certificates could not be made"; }
fi

command_of() {
  case $1 in
    n*)
      at=$((port + (${1#n} - 1) * 10))
      if [ -n "$postgres" ]; then export MUSTER_POSTGRES="$postgres" MUSTER_REDIS="$redis"; fi
      set -- server --name "$1" --data "$data/$1" --tls "$tls/nodes/$1" --join "$join" \
        --http "$host:$at" --raft "$host:$((at + 1))" --gossip "$host:$((at + 2))"
      ;;
    *)
      set -- worker --name "$1" --data "$data/$1" --join "$join" --ca "$tls/ca.crt" --join-token "$tls/join.token" \
        --slots 4 --allow-exec '/**' --allow-http-private
      ;;
  esac
  exec "$muster" "$@"
}

now() { date +%s; }

start() {
  # With a terminal, each gets a process group of its own, so that Ctrl-C reaches this script alone.
  if [ -t 0 ]; then set -m; fi
  (command_of "$1") </dev/null >>"$data/logs/$1.log" 2>&1 &
  eval "pid_$1=$!"
  echo $! >"$data/$1.pid"
  set +m
}

pid_of() { eval "printf '%s' \"\${pid_$1:-}\""; }
runs() {
  pid=$(pid_of "$1")
  [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null
}
any_runs() {
  for name in "$@"; do
    if runs "$name"; then return 0; fi
  done
  return 1
}

# pause waits so that a signal is taken at once.
pause() {
  sleep "$1" &
  wait $! 2>/dev/null || true
}

ask() {
  MUSTER_ADDRESS=$join MUSTER_CA=$tls/ca.crt MUSTER_TOKEN_FILE=$tls/admin.token "$muster" "$@"
}

# stop ends these processes: softly, and after a while for good.
stop() {
  for name in "$@"; do
    if runs "$name"; then kill -TERM "$(pid_of "$name")" 2>/dev/null || true; fi
  done
  end=$(($(now) + 45))
  while any_runs "$@" && [ "$(now)" -lt "$end" ]; do pause 0.2; done
  for name in "$@"; do
    if runs "$name"; then
      say "$name does not stop and is killed"
      kill -KILL "$(pid_of "$name")" 2>/dev/null || true
    fi
  done
}

stopping=
finish() {
  code=$?
  if [ -n "$stopping" ]; then return; fi
  stopping=yes
  # A second Ctrl-C goes on to those that still run: they stop at once then.
  trap 'for name in $nodes $workers; do if runs "$name"; then kill -TERM "$(pid_of "$name")" 2>/dev/null || true; fi; done' INT TERM HUP
  if any_runs $nodes $workers; then
    say "Stopping. Again stops at once."
    stop $workers
    stop $nodes
  fi
  for name in pid $(printf '%s.pid ' $nodes $workers); do rm -f "$data/$name"; done
  exit "$code"
}
trap finish EXIT
echo $$ >"$data/pid"
trap 'exit 0' INT TERM HUP

# check fails if one of these has ended although nobody asked it to: at the start that is a reason not to go on.
check() {
  for name in "$@"; do
    if ! runs "$name"; then
      tail -n 3 "$data/logs/$name.log" >&2
      fail "$name could not be started; its log is $data/logs/$name.log (if a port is taken: --port N, or PORT=N for make)"
    fi
  done
}

for name in $nodes $workers; do : >"$data/logs/$name.log"; done
for name in $nodes; do start "$name"; done
say "Starting three nodes, at $join"
end=$(($(now) + 60))
until ask cluster status >"$data/logs/status.log" 2>&1; do
  check $nodes
  if [ "$(now)" -ge "$end" ]; then
    cat "$data/logs/status.log" >&2
    fail "the nodes have not found each other within a minute; their logs are in $data/logs"
  fi
  pause 0.3
done
check $nodes
printf '%s\n' "$port" >"$data/port"
for name in $workers; do start "$name"; done
pause 1
check $nodes $workers

show
say
say "Logs are in $data/logs, data beside them. Ctrl-C stops everything."

while :; do
  pause 1
  for name in $nodes $workers; do
    if runs "$name"; then continue; fi
    eval "gone=\${gone_$name:-}"
    if [ -z "$gone" ]; then
      eval "gone_$name=$(now)"
      code=0
      wait "$(pid_of "$name")" 2>/dev/null || code=$?
      if [ "$code" -gt 128 ]; then
        say "$name was ended by signal $((code - 128))"
      else
        say "$name ended: $(tail -n 1 "$data/logs/$name.log" | cut -c 1-300)"
      fi
    elif [ $(($(now) - gone)) -ge 5 ]; then
      start "$name"
      eval "gone_$name="
      say "$name is started again, as process $(pid_of "$name")"
    fi
  done
done
