#!/bin/bash
# deploy.sh apply NAMESPACE OVERLAY   applies an overlay and waits for its rollout; writes token.txt, by
#                                     which tests may write, and routes.yaml, the cluster's routes
# deploy.sh undo NAMESPACE            returns to the revision before apply, if apply made a new one
set -euo pipefail
umask 077
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
  local before now after
  kubectl logs deployment/passengers --all-containers --prefix --tail 100 || true
  before=$(cat before.txt)
  now=$(revision)
  after=$(cat after.txt 2>/dev/null || true) # nothing, where apply or the rollout failed
  if [ -z "$before" ] || [ "$now" = "$before" ] || [ "$now" != "${after:-$now}" ]; then
    echo "revision was '$before', is '$now'; this build made no new one, or it is not the last: nothing is undone"
  else
    kubectl rollout undo deployment/passengers --to-revision "$before"
    kubectl rollout status deployment/passengers --timeout 300s
  fi
}

if [ "$1" = undo ]; then undo; exit; fi
revision >before.txt
trap undo EXIT # after a failure of any command below
kubectl apply --kustomize "kustomize/overlays/$3"
kubectl rollout status deployment/passengers --timeout 300s
revision >after.txt
kubectl exec deployment/passengers --container passengers -- node app.ts token --sub pipeline --expires 15m >token.txt
# Which of these kinds a cluster has depends on its gateway.
kinds=$(kubectl api-resources --verbs list --output name | grep -E '^(ingresses\.networking|httproutes)\.' | paste -sd,)
kubectl get "$kinds" --all-namespaces --output yaml >routes.yaml
trap - EXIT
