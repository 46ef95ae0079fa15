#!/usr/bin/env bash
# Replaces the tables by those of a dump in /backup: FILE, or the newest. It is one transaction, so
# a restore that fails changes nothing.
set -euo pipefail
cd /backup
newest() { printf '%s\n' passengers-*.dump | sort | tail -n 1; }
file=${FILE:-$(newest)}
pg_restore --clean --if-exists --no-owner --single-transaction --dbname="$PGDATABASE" "$file"
echo "restored $file"
