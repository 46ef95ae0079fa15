#!/usr/bin/env bash
# Starts PostgreSQL in the stock image, after role, password and database are as the Secret has
# them now: the volume may be older than the Secret. No password reaches an argument or the log.
set -euo pipefail

# Makes the cluster where the volume is empty, aside: one that was half made when the container
# died would be taken for whole. Its superuser is for the socket of this container alone (trust, by
# pg_hba.conf), so nobody has to know the password that the image demands.
if [ ! -d "$PGDATA" ]; then
  rm -rf "$PGDATA.new"
  POSTGRES_PASSWORD="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')" \
    PGDATA="$PGDATA.new" docker-ensure-initdb.sh
  mv "$PGDATA.new" "$PGDATA"
fi
chmod 0700 "$PGDATA" || true # where fsGroup opened it PostgreSQL refuses it

# Not in a subshell: a lock file of a killed container names process 1, and pg_ctl knows that this
# is its parent. A long time, since this recovers after a crash.
pg_ctl start --wait --timeout=3600 --silent --options="-c listen_addresses=''"
psql --username=postgres --dbname=postgres --no-psqlrc --quiet --set=ON_ERROR_STOP=1 <<'SQL'
\getenv password PGPASSWORD
set log_statement = none;
set log_min_error_statement = panic;
set log_min_duration_statement = -1;
select 'create role passengers login' where to_regrole('passengers') is null \gexec
alter role passengers password :'password';
select 'create database passengers owner passengers'
  where not exists (select from pg_database where datname = 'passengers') \gexec
SQL
pg_ctl stop --wait --mode=fast --silent

exec postgres
