# The service as it runs: Node as app.ts wants it, nginx before it, supervisord as PID 1.
# `npm run image` builds it and hands over the arguments near the end.

FROM docker.io/library/node:26-trixie-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
# Of swagger-ui-dist two files are served; maps are for debuggers.
RUN npm ci --omit=dev --ignore-scripts \
    && find node_modules/swagger-ui-dist -type f -name '*.js' ! -name swagger-ui-bundle.js -delete \
    && find node_modules -name '*.map' -delete

FROM docker.io/library/node:26-trixie-slim
RUN export DEBIAN_FRONTEND=noninteractive && apt-get update \
    && apt-get install --yes --no-install-recommends nginx supervisor \
    && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/*
WORKDIR /app
COPY --from=dependencies /app/node_modules node_modules
COPY supervisord.conf /etc/supervisor/
COPY nginx/*.conf nginx/*.py /etc/nginx/
COPY examples/*.ts examples/
COPY package.json kustomize/components/credentials/credentials.ts app.ts ./

ARG VERSION
ARG BRANCH
ARG COMMIT
ARG SOURCE
ARG BASE_DIGEST
# Code that Node has compiled once, and app.ts without its types: start.py hands it to Node.
# It stands between the arguments and their use, for buildah 1.28 takes ENV and LABEL out of its
# cache whatever the arguments are, but not RUN.
RUN NODE_COMPILE_CACHE=/var/cache/node node --eval "import('./app.ts')" \
    && chmod -R g=rX /var/cache/node

ENV NODE_ENV=production NODE_COMPILE_CACHE=/tmp/compile-cache \
    APP_VERSION=$VERSION APP_BRANCH=$BRANCH APP_COMMIT=$COMMIT
LABEL org.opencontainers.image.title=passengers \
      org.opencontainers.image.source=$SOURCE \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$COMMIT \
      org.opencontainers.image.base.name=docker.io/library/node:26-trixie-slim \
      org.opencontainers.image.base.digest=$BASE_DIGEST
EXPOSE 8080 8081
# Group 0 reads all of it, so that any user id of that group runs it (OpenShift).
USER 1000:0
ENTRYPOINT ["/usr/bin/python3", "/etc/nginx/start.py"]
