#!/bin/bash
# Format, lint, types and every test, in a container of node:26-trixie.
# With CI=true a suite whose tool is missing fails instead of being skipped, so all are installed.
set -euo pipefail
export CI=true DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium kubectl kustomize nginx-light \
  openssl postgresql prometheus shellcheck >/dev/null
npm ci --no-fund --no-audit
npm run check
