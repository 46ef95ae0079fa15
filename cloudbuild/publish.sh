#!/bin/sh
# Publishes the image of image.txt: commits its tag and the rendered install/passengers.yaml to BRANCH
# of REPOSITORY, on top of what the branch is now; if somebody else pushes meanwhile, once more.
# release.txt gets the number of this release, modulo ten.
set -eu
workspace=$PWD
clone=$(mktemp -d)
# shellcheck disable=SC2016 # git expands GIT_TOKEN, so that it stands in no argument
git clone --quiet --branch "$BRANCH" --config user.name='Cloud Build' --config user.email=cloud-build@localhost \
  --config credential.helper='!f() { echo username=x-access-token; echo "password=$GIT_TOKEN"; }; f' "$REPOSITORY" "$clone"
cd "$clone"
cp "$workspace/image.txt" .
for attempt in 1 2; do
  git fetch --quiet origin "$BRANCH"
  git reset --quiet --hard FETCH_HEAD
  published=$(sed -n 's/^ *newTag: .*-\([0-9a-f]\{7,40\}\)"\{0,1\}$/\1/p' kustomize/overlays/install/kustomization.yaml)
  if git merge-base --is-ancestor "$COMMIT" "$published^" 2>/dev/null; then
    echo "$published is published, which is newer than $COMMIT: nothing to do" && exit
  fi
  sh cloudbuild/bump.sh "$TAG" install test production
  kustomize build kustomize/overlays/install >install/passengers.yaml
  git diff --quiet && echo "$TAG is published already: nothing to do" && exit
  git commit --quiet --all --message "Publish $TAG"
  if git push --quiet origin "HEAD:$BRANCH"; then
    git show --stat --format='%h %s'
    echo "$(($(git rev-list --count --grep='^Publish ' HEAD) % 10))" >"$workspace/release.txt"
    exit
  fi
  echo "push $attempt of 2 was refused"
done
exit 1
