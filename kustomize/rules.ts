/**
 * Rules that every rendering of kustomize/ keeps; each function returns the faults that it finds.
 */
import assert from 'node:assert/strict';

// biome-ignore lint/suspicious/noExplicitAny: rules read whatever was rendered
export type Manifest = any;

/** The value at "Deployment passengers/spec/replicas"; items of lists by number or by name. */
export function at(manifests: Manifest[], path: string): Manifest {
  const [object, ...keys] = path.split('/');
  const found = manifests.find(({ kind, metadata }) => `${kind} ${metadata.name}` === object);
  assert.ok(found, `no ${object}`);
  const item = (list: Manifest, name: string) =>
    Array.isArray(list) ? list.find((it) => it.name === name) : undefined;
  return keys.reduce((value, key) => value?.[key] ?? item(value, key), found);
}

function podOf({ spec }: Manifest): Manifest {
  const template = spec?.jobTemplate?.spec.template ?? spec?.template;
  return template?.spec?.containers?.length > 0 ? template : undefined;
}

function podsOf(manifests: Manifest[]): Manifest[] {
  return manifests.map(podOf).filter((pod) => pod);
}

function containersOf({ spec }: Manifest): Manifest[] {
  return [...(spec.initContainers ?? []), ...spec.containers];
}

/** Calls `visit` with every key below a value. */
function walk(value: Manifest, visit: (key: string, value: Manifest, path: string) => void): void {
  const below = (it: Manifest, path: string) => {
    if (it === null || typeof it !== 'object') return;
    for (const [key, member] of Object.entries(it)) {
      visit(key, member, `${path}/${key}`);
      below(member, `${path}/${key}`);
    }
  };
  below(value, '');
}

const SCHEMAS: [RegExp, string][] = [
  [/^monitoring\.coreos\.com\//, '@kubernetes-models/prometheus-operator/'],
  [/^postgresql\.cnpg\.io\//, '@kubernetes-models/cloudnative-pg/'],
  [/^(v1|(apps|policy|batch|autoscaling)\/v\d)$/, 'kubernetes-models/'],
  [/^(networking|rbac\.authorization)\.k8s\.io\/v1$/, 'kubernetes-models/'],
];
/** No package has schemas of these; FACTS has their content. */
const NO_SCHEMA = /^(HTTPRoute|Route|ImageStream|BuildConfig)$/;

export async function schemaFaults(manifests: Manifest[]): Promise<string[]> {
  const faults: string[] = [];
  for (const manifest of manifests.filter(({ kind }) => !NO_SCHEMA.test(kind))) {
    const { apiVersion, kind } = manifest;
    const from = SCHEMAS.find(([pattern]) => pattern.test(apiVersion))?.[1];
    const model = from ? (await import(`${from}${apiVersion}/${kind}`))[kind] : undefined;
    const unread = new Set<string>();
    try {
      if (!model) throw new Error(`no schema for ${apiVersion}`);
      model.prototype.validate.call(watch(manifest, '', unread));
    } catch (error) {
      faults.push(`${kind}: ${error}`);
    }
    faults.push(...[...unread].map((path) => `unknown field ${path}`));
  }
  return faults;
}

/** Collects the fields that a validator never reads, since it ignores unknown ones. */
function watch(value: Manifest, path: string, unread: Set<string>): Manifest {
  if (value === null || typeof value !== 'object') return value;
  const below = (key: string | symbol) => `${path}/${String(key)}`;
  for (const key of Object.keys(value)) unread.add(below(key));
  const members = new Map<string | symbol, Manifest>();
  return new Proxy(value, {
    get(target, key) {
      unread.delete(below(key));
      if (!members.has(key)) members.set(key, watch(target[key], below(key), unread));
      return members.get(key);
    },
    ownKeys(target) {
      for (const key of Object.keys(target)) unread.delete(below(key)); // a map with free keys
      return Reflect.ownKeys(target);
    },
  });
}

const VOLUMES =
  /^(name|configMap|csi|downwardAPI|emptyDir|ephemeral|persistentVolumeClaim|projected|secret)$/;

/** Pod Security `restricted`, and beyond it: read-only root, no token, requests and limits. */
export function podFaults(manifests: Manifest[]): string[] {
  const anyUser = manifests.some(({ kind }) => kind === 'BuildConfig'); // OpenShift chooses the user
  return podsOf(manifests).flatMap((pod) => {
    const { spec } = pod;
    const ok: Record<string, unknown> = {
      hostNetwork: !spec.hostNetwork && !spec.hostPID && !spec.hostIPC,
      automountServiceAccountToken: spec.automountServiceAccountToken === false,
      sysctls: !spec.securityContext?.sysctls,
    };
    for (const volume of spec.volumes ?? []) {
      const bounded = volume.emptyDir === undefined || volume.emptyDir.sizeLimit;
      ok[`volume ${volume.name}`] =
        bounded && Object.keys(volume).every((type) => VOLUMES.test(type));
    }
    for (const { name, resources = {}, ports = [], securityContext } of containersOf(pod)) {
      const context = { ...spec.securityContext, ...securityContext };
      const { runAsUser, capabilities } = context;
      const checks: Record<string, unknown> = {
        runAsNonRoot: context.runAsNonRoot === true,
        runAsUser: anyUser ? runAsUser === undefined : runAsUser > 0,
        seccompProfile: context.seccompProfile?.type === 'RuntimeDefault',
        allowPrivilegeEscalation: context.allowPrivilegeEscalation === false,
        privileged: !context.privileged && !context.procMount,
        readOnlyRootFilesystem: context.readOnlyRootFilesystem === true,
        capabilities: capabilities?.drop?.includes('ALL') && !capabilities.add,
        hostPort: ports.every(({ hostPort }: Manifest) => !hostPort),
        requests: ['cpu', 'memory', 'ephemeral-storage'].every((it) => resources.requests?.[it]),
        limits: resources.limits?.memory && !resources.limits.cpu, // it throttles on an idle node
      };
      for (const [what, holds] of Object.entries(checks)) ok[`${name} ${what}`] = holds;
    }
    return Object.keys(ok).filter((what) => !ok[what]);
  });
}

/** The keys of the Secrets that a rendering reads and does not contain. */
export const SECRETS: Record<string, string[]> = {
  passengers: ['JWT_SECRET', 'PGPASSWORD'], // credentials.ts
  'passengers-db-app': ['username', 'password', 'dbname', 'host', 'port', 'uri'], // CloudNativePG
};

/** References between objects: names, selectors, ports, volumes, keys of Secrets. */
export function referenceFaults(manifests: Manifest[]): string[] {
  const has = (kind: string, name: string) =>
    manifests.some((it) => it.kind === kind && it.metadata.name === name);
  const hasPort = (service: string, port: string | number) =>
    has('Service', service) &&
    at(manifests, `Service ${service}/spec/ports`).some(
      (it: Manifest) => it.name === port || it.port === port,
    );
  const selected = (candidates: Manifest[], labels: Manifest) =>
    candidates.filter(({ metadata }) =>
      Object.entries(labels).every(([name, value]) => metadata.labels?.[name] === value),
    );
  const EXISTS: Record<string, (value: Manifest) => unknown> = {
    serviceAccountName: (name) => has('ServiceAccount', name),
    serviceName: (name) => has('Service', name),
    claimName: (name) => has('PersistentVolumeClaim', name),
    configMap: ({ name }) => name === 'kube-root-ca.crt' || has('ConfigMap', name),
    scaleTargetRef: ({ kind, name }) => has(kind, name),
    roleRef: ({ kind, name }) => has(kind, name),
    subjects: ([{ kind, name, namespace }]) =>
      has(kind, name) && namespace === manifests[0].metadata.name,
    secretKeyRef: ({ name, key, optional }) => optional || SECRETS[name]?.includes(key),
    env: (list: Manifest[]) =>
      list.every(({ value, valueFrom }) => (value === undefined) !== (valueFrom === undefined)),
    service: ({ name, port }) => hasPort(name, port.name), // of an Ingress
    backendRefs: ([{ name, port }]) => hasPort(name, port),
  };
  const faults = new Set<string>();
  const want = (holds: unknown, fault: string) => holds || faults.add(fault);
  walk(manifests, (key, value) => {
    want(EXISTS[key]?.(value) ?? true, `${key} ${JSON.stringify(value)}`);
  });
  for (const { kind, metadata, spec } of manifests) {
    const labels = kind === 'Service' ? spec.selector : spec?.selector?.matchLabels;
    if (!labels) continue;
    const workloads = manifests.filter(podOf).map(podOf);
    const candidates = kind === 'ServiceMonitor' ? manifests : workloads;
    const found = selected(candidates, labels);
    const few = spec.clusterIP === 'None' ? found.length > 0 : found.length === 1;
    want(few, `${kind} ${metadata.name} selects ${found.length}`);
    const ports = kind === 'Service' ? spec.ports.map((it: Manifest) => it.targetPort) : [];
    for (const port of [...ports, ...(spec.endpoints ?? []).map((it: Manifest) => it.port)]) {
      want(JSON.stringify(found).includes(`"name":"${port}"`), `${metadata.name}: port ${port}`);
    }
  }
  const claims = manifests.flatMap(({ spec }) => spec?.volumeClaimTemplates ?? []);
  for (const pod of podsOf(manifests)) {
    const volumes = [...(pod.spec.volumes ?? []), ...claims.map(({ metadata }) => metadata)];
    for (const container of containersOf(pod)) {
      const ports = (container.ports ?? []).map(({ name }: Manifest) => name);
      walk(container, (key, value) => {
        if (key === 'httpGet') want(ports.includes(value.port), `probe of ${value.port}`);
      });
      for (const { name } of container.volumeMounts) {
        want(
          volumes.some((volume) => volume.name === name),
          `volume ${name}`,
        );
      }
    }
  }
  return [...faults];
}

/** What a rendering may contain at all. */
export function contentFaults([namespace, ...others]: Manifest[]): string[] {
  const faults: string[] = [];
  const want = (holds: unknown, fault: string) => holds || faults.push(fault);
  const { name, labels = {} } = namespace.metadata;
  want(namespace.kind === 'Namespace', 'no Namespace comes first');
  want(labels['pod-security.kubernetes.io/enforce'] === 'restricted', 'not restricted');
  for (const { kind, metadata } of others) {
    want(!/^(Secret|Job|Pod)$/.test(kind), kind);
    want(metadata.namespace === name, `${metadata.name} is in another namespace`);
  }
  for (const { image, env = [] } of podsOf(others).flatMap(containersOf)) {
    want(/:(?!latest$)[\w.-]+$|@sha256:/.test(image), `image ${image}`);
    for (const it of env) {
      want(
        !it.value || !/PASSWORD|SECRET|TOKEN|DATABASE_URL/.test(it.name),
        `credential ${it.name}`,
      );
    }
  }
  return faults;
}

/**
 * Lists that kubectl replaces whole, by kind, and what their items have to contain: a default that
 * the API server adds there makes every further apply report `configured`.
 */
const STORED: [RegExp, RegExp, string[]][] = [
  [/NetworkPolicy/, /gress\/\d+\/ports\/\d+$/, ['protocol']],
  [/StatefulSet/, /volumeClaimTemplates\/\d+$/, ['apiVersion', 'kind', 'status']],
  [/StatefulSet/, /volumeClaimTemplates\/\d+\/spec$/, ['volumeMode']],
  [/Deployment/, /fieldRef$/, ['apiVersion']],
  [/HTTPRoute/, /parentRefs\/\d+$/, ['group', 'kind']],
  [/HTTPRoute/, /backendRefs\/\d+$/, ['group', 'kind', 'weight']],
  [/HTTPRoute/, /(path|headers\/\d+)$/, ['type']],
];

export function storedFaults(manifests: Manifest[]): string[] {
  const faults: string[] = [];
  for (const manifest of manifests) {
    const rows = STORED.filter(([kind]) => kind.test(manifest.kind));
    walk(manifest, (_, value, path) => {
      const keys = rows.flatMap(([, at, keys]) => (at.test(path) ? keys : []));
      const missing = keys.filter((key) => value[key] === undefined);
      faults.push(...missing.map((key) => `${manifest.kind}${path} has no ${key}`));
    });
  }
  return faults;
}
