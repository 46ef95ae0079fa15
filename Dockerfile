# The service as it runs: Node, nginx in front of it, supervisord as PID 1.
# `npm run image` builds it and passes the build arguments.

FROM docker.io/library/node:26-trixie-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
# Of swagger-ui-dist two files are served; source maps are for debuggers.
RUN npm ci --omit=dev --ignore-scripts \
    && find node_modules/swagger-ui-dist -type f -name '*.js' ! -name swagger-ui-bundle.js -delete \
    && find node_modules -name '*.map' -delete

FROM docker.io/library/node:26-trixie-slim
RUN export DEBIAN_FRONTEND=noninteractive && apt-get update \
    && apt-get install --yes --no-install-recommends nginx supervisor \
    && mkdir /etc/nginx/trusted.d \
    && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/*
WORKDIR /app
COPY --from=dependencies /app/node_modules node_modules
COPY supervisord.conf /etc/supervisor/
COPY nginx/*.conf nginx/*.py /etc/nginx/
COPY examples/*.ts examples/
COPY package.json kustomize/components/credentials/credentials.ts ./
COPY lib/*.ts lib/
COPY app.ts ./

ARG VERSION
ARG BRANCH
ARG COMMIT
ARG STACK
ARG SOURCE
ARG BASE_DIGEST
# Compiled code, without types; start.py links it to where Node looks for it. Between ARG and ENV,
# since buildah 1.28 never takes ENV and LABEL from its cache, but RUN.
RUN NODE_COMPILE_CACHE=/var/cache/node node --eval "import('./app.ts')" \
    && chmod -R g=rX /var/cache/node

# The heap fits the memory limit of 384 MiB in compose.yaml and kustomize/base: change them together.
# Node takes 190 MB while it streams 300 000 rows, 206 MB for 40 bodies of 800 kB at once.
ENV NODE_OPTIONS="--max-old-space-size=96 --max-semi-space-size=16"
ENV NODE_ENV=production NODE_COMPILE_CACHE=/tmp \
    APP_VERSION=$VERSION APP_BRANCH=$BRANCH APP_COMMIT=$COMMIT APP_STACK=$STACK
LABEL org.opencontainers.image.title=passengers \
      org.opencontainers.image.source=$SOURCE \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$COMMIT \
      org.opencontainers.image.base.name=docker.io/library/node:26-trixie-slim \
      org.opencontainers.image.base.digest=$BASE_DIGEST
EXPOSE 8080 8081
# Group 0 reads all files, so the image runs as any user id of that group (OpenShift).
USER 1000:0
ENTRYPOINT ["/usr/bin/python3", "/etc/nginx/start.py"]
