#!/bin/bash
# The pipeline on this machine, of the last commit, without a cloud: the scripts that cloudbuild.yaml
# runs, a registry on 127.0.0.1, a bare clone as origin. The repository itself stays as it is.
#
#     npm run pipeline                              all of it
#     npm run pipeline -- --skip check,image-test   what ran elsewhere already
#
# As root on Debian with buildah, runc, debootstrap, skopeo, docker-registry and kubectl.
set -euo pipefail
cd "$(dirname "$0")/.."

skip=
if [ "${1:-}" = --skip ]; then
  skip=",$2,"
elif [ $# -gt 0 ]; then
  echo "usage: npm run pipeline [-- --skip check,image-test]" >&2
  exit 2
fi

work=$(mktemp -d)
registry=
# shellcheck disable=SC2329 # called by the trap
finish() {
  [ -z "$registry" ] || kill "$registry"
  rm -rf "$work"
}
trap finish EXIT

step() {
  echo "--- $1 (${SECONDS} s)"
  [[ $skip != *,$1,* ]] || { echo skipped && return 1; }
}

if step check; then
  npm run check
fi

COMMIT=$(git rev-parse HEAD)
TAG=main-${COMMIT:0:7}
export BRANCH=main COMMIT TAG STACK=local

built=localhost/passengers:pipeline

step build
if [ -n "$(git status --porcelain)" ]; then
  echo 'uncommitted changes are in the image, and not in what is published'
fi
npm run image -- "$built"

if step image-test; then
  IMAGE=$built npm run test:image
fi

step push
port=$(node -e 'const server = net.createServer().listen(0, "127.0.0.1", () => {
  console.log(server.address().port);
  server.close();
});')
cat >"$work/registry.json" <<END
{"version": "0.1", "log": {"level": "error"}, "http": {"addr": "127.0.0.1:$port"},
 "storage": {"filesystem": {"rootdirectory": "$work/registry"}}}
END
docker-registry serve "$work/registry.json" &
registry=$!
image=127.0.0.1:$port/passengers
until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/v2/"; do
  kill -0 "$registry" # fails, and with it this script, if the registry has ended
  sleep 0.1
done
cache=${XDG_CACHE_HOME:-$HOME/.cache}/passengers
buildah --root "$cache/storage" --runroot "$cache/run" push --quiet --tls-verify=false \
  "$built" "docker://$image:$TAG.dev"
digest=$(skopeo inspect --tls-verify=false --format '{{.Digest}}' "docker://$image:$TAG.dev")
echo "pushed $image:$TAG.dev as $digest"

step promote
skopeo copy --quiet --src-tls-verify=false --dest-tls-verify=false --preserve-digests \
  "docker://$image@$digest" "docker://$image:$TAG"

step publish
PATH=$(dirname "$(test/kustomize.sh)"):$PATH
export REPOSITORY=$work/origin GIT_TOKEN=
git clone --quiet --bare . "$REPOSITORY"
git -C "$REPOSITORY" update-ref refs/heads/main "$COMMIT"
git clone --quiet --branch main "$REPOSITORY" "$work/checkout"
echo "$image@$digest" >"$work/checkout/image.txt"
(cd "$work/checkout" && sh cloudbuild/publish.sh)

step diff
git --no-pager -C "$REPOSITORY" diff "$COMMIT" main -- install/passengers.yaml
cat <<END
pipeline: done in $SECONDS s; these steps run only in the cloud:
  image-test by smoke and acceptance, sbom and scan; deploy-test, smoke and acceptance through the
  ingress, and their undo; keep (release-0 to release-9), the pull request to production;
  cloudbuild/production.yaml after an approval; cloudbuild/hourly.yaml
END
