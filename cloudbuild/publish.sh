#!/bin/sh
# Publishes the image of image.txt: commits its tag and the rendered install/passengers.yaml to BRANCH
# of REPOSITORY, on top of what the branch is now; if somebody else pushes meanwhile, once more.
# release.txt gets the number of this release, modulo ten.
set -eu
export GIT_TERMINAL_PROMPT=0 GIT_CONFIG_COUNT=3
export GIT_CONFIG_KEY_0=credential.helper
# shellcheck disable=SC2016 # git expands GIT_TOKEN, so that it stands in no argument
export GIT_CONFIG_VALUE_0='!f() { echo username=x-access-token; echo "password=$GIT_TOKEN"; }; f'
export GIT_CONFIG_KEY_1=user.name GIT_CONFIG_VALUE_1='Cloud Build'
export GIT_CONFIG_KEY_2=user.email GIT_CONFIG_VALUE_2=cloud-build@localhost

workspace=$PWD
clone=$(mktemp -d)
git clone --quiet --branch "$BRANCH" "$REPOSITORY" "$clone"
cd "$clone"
cp "$workspace/image.txt" .

for attempt in 1 2; do
  git fetch --quiet origin "$BRANCH"
  git reset --quiet --hard FETCH_HEAD
  published=$(sed -n 's/^ *newTag: .*-\([0-9a-f]\{7,40\}\)"\{0,1\}$/\1/p' kustomize/overlays/install/kustomization.yaml)
  case $COMMIT in
    "$published"*) ;;
    *)
      if git merge-base --is-ancestor "$COMMIT" "$published" 2>/dev/null; then
        echo "$published is published, which is newer than $COMMIT: nothing to do"
        exit
      fi
      ;;
  esac
  sh cloudbuild/bump.sh "$TAG" install test production
  kustomize build kustomize/overlays/install >install/passengers.yaml
  if git diff --quiet; then
    echo "$TAG is published already: nothing to do"
    exit
  fi
  git commit --quiet --all --message "Publish $TAG"
  if git push --quiet origin "HEAD:$BRANCH"; then
    git show --stat --format='%h %s'
    echo "$(($(git rev-list --count --grep='^Publish ' HEAD) % 10))" >"$workspace/release.txt"
    exit
  fi
  echo "push $attempt of 2 was refused"
done
exit 1
