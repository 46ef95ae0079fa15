#!/bin/bash
# deploy.sh apply NAMESPACE OVERLAY   applies an overlay and waits for its rollout; writes token.txt, by
#                                     which tests may write, and routes.yaml, the cluster's routes
# deploy.sh undo NAMESPACE            returns to the revision before apply, if apply made a new one
set -euo pipefail
namespace=$2

kubectl() {
  command kubectl --namespace "$namespace" "$@"
}

# The Deployment's revision, once its controller has seen the last change; empty if there is none.
revision() {
  local generation
  generation=$(kubectl get deployment passengers --ignore-not-found --output 'jsonpath={.metadata.generation}')
  [ -n "$generation" ] || return 0
  kubectl wait deployment/passengers --for "jsonpath={.status.observedGeneration}=$generation" --timeout 30s >&2
  kubectl get deployment passengers --output 'jsonpath={.metadata.annotations.deployment\.kubernetes\.io/revision}'
}

undo() {
  local before after now
  kubectl logs deployment/passengers --all-containers --prefix --tail 100 || true
  before=$(cat revision.before)
  now=$(revision)
  after=$(cat revision.after 2>/dev/null || echo "$now")
  if [ -z "$before" ] || [ "$after" = "$before" ]; then
    echo "this build made no new revision over an older one: nothing is undone"
  elif [ "$now" != "$after" ]; then
    echo "revision $now was made after this build's $after: nothing is undone"
  else
    kubectl rollout undo deployment/passengers --to-revision "$before"
    kubectl rollout status deployment/passengers --timeout 300s
  fi
}

apply() {
  umask 077
  rm -f revision.after
  revision >revision.before
  if ! { kubectl apply --kustomize "kustomize/overlays/$1" &&
    kubectl rollout status deployment/passengers --timeout 300s; }; then
    undo
    exit 1
  fi
  revision >revision.after
  kubectl exec deployment/passengers --container passengers -- \
    node app.ts token --sub pipeline --expires 15m >token.txt
  local kinds # which of them a cluster has depends on its gateway
  kinds=$(kubectl api-resources --verbs list --output name | grep -E '^(ingresses\.networking|httproutes|kong)' | paste -sd,)
  kubectl get "$kinds" --all-namespaces --output yaml >routes.yaml
}

case $1 in
  apply) apply "$3" ;;
  undo) undo ;;
esac
