#!/usr/bin/env bash
# Runs PostgreSQL in the stock image and keeps the role's password equal to the Secret's: the volume
# may be older than the Secret, and the Secret may be replaced while the server runs. No password
# reaches an argument or the log.
set -euo pipefail

# Initialises an empty volume in another directory: a cluster that was half made when the container
# died would look complete. Its superuser may log in by the socket of this container only
# (pg_hba.conf: trust), so the password that the image requires is random and kept nowhere.
if [ ! -d "$PGDATA" ]; then
  rm -rf "$PGDATA.new"
  POSTGRES_PASSWORD="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" \
    PGDATA="$PGDATA.new" docker-ensure-initdb.sh
  mv "$PGDATA.new" "$PGDATA"
fi
chmod 0700 "$PGDATA" || true # PostgreSQL refuses a directory that fsGroup opened to the group

set_password() {
  PGPASSWORD=$1 psql --username=postgres --dbname=postgres --no-psqlrc --quiet --set=ON_ERROR_STOP=1 <<'SQL'
\getenv password PGPASSWORD
set log_statement = none;
set log_min_error_statement = panic;
set log_min_duration_statement = -1;
select 'create role passengers login' where to_regrole('passengers') is null \gexec
alter role passengers password :'password';
select 'create database passengers owner passengers'
  where not exists (select from pg_database where datname = 'passengers') \gexec
SQL
}

# The kubelet updates this file of the Secret about a minute after a change. At a restart of the
# container it may be older than PGPASSWORD, so only a change of it counts.
mounted() { cat /run/passengers/PGPASSWORD 2>/dev/null || true; }
seen=$(mounted)

# bash stays as PID 1: it passes both stop signals on as SIGINT, PostgreSQL's fast shutdown, which
# works during crash recovery too, and ends with the server's exit code.
postgres &
server=$!
trap 'kill -INT "$server" 2>/dev/null || true' INT TERM

wanted=$PGPASSWORD current='' pause=0.1
while kill -0 "$server" 2>/dev/null; do
  now=$(mounted)
  if [ -n "$now" ] && [ "$now" != "$seen" ]; then
    seen=$now wanted=$now
  fi
  if [ "$wanted" != "$current" ] && pg_isready --quiet; then # not yet during recovery
    pause=2
    set_password "$wanted" && current=$wanted
  fi
  sleep "$pause" &>/dev/null &
  wait -n "$server" $! || true # returns as soon as the server ends or a signal comes
done
wait "$server"
