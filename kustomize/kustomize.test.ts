/**
 * Checks the renderings of kustomize/ without a cluster: schemas, Pod Security `restricted`,
 * references between objects, and what the next release changes. Needs `kubectl` or `kustomize`.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parse, parseAllDocuments } from 'yaml';

// biome-ignore lint/suspicious/noExplicitAny: tests read whatever was rendered
type Manifest = any;

const HERE = fileURLToPath(new URL('./', import.meta.url));
const OVERLAYS = readdirSync(join(HERE, 'overlays'));
const COMPONENTS = readdirSync(join(HERE, 'components'));

/** kubectl asks a server for its version before it renders; nothing listens on this port. */
const TOOLS = [
  ['kubectl', '--server=http://127.0.0.1:1', 'kustomize'],
  ['kustomize', 'build'],
];
const tool = TOOLS.find(([command = '']) => !spawnSync(command, ['--help']).error);
const skip = !tool && !process.env.CI && 'neither kubectl nor kustomize is installed';

const work = mkdtempSync(join(tmpdir(), 'passengers kustomize-'));
after(() => rmSync(work, { recursive: true }));

function text(path: string): string {
  return readFileSync(join(HERE, path), 'utf8');
}

function overlay(name: string): Manifest {
  return parse(text(`overlays/${name}/kustomization.yaml`));
}

function render(directory: string): string {
  const [command = 'kubectl', ...args] = tool ?? [];
  return execFileSync(command, [...args, directory], { encoding: 'utf8', stdio: 'pipe' });
}

/** The objects of a kustomization whose paths are those of an overlay. */
function renderOverlay(kustomization: Manifest): Manifest[] {
  const directory = mkdtempSync(join(work, 'overlay-'));
  const moved = (path: string) => relative(directory, join(HERE, 'overlays/any', path));
  const { resources = [], components = [], ...rest } = kustomization;
  const there = { resources: resources.map(moved), components: components.map(moved), ...rest };
  writeFileSync(join(directory, 'kustomization.yaml'), JSON.stringify(there));
  return parseAllDocuments(render(directory)).map((document) => document.toJS());
}

/** Components that another one needs before it. */
const BESIDE: Record<string, string[]> = {
  backup: ['postgres'],
  openshift: ['postgres', 'credentials'],
  'read-replicas': ['cloudnative-pg', 'gateway'],
};
/** All components that go together; openshift comes last because it patches what others add. */
const without = (...names: string[]) =>
  COMPONENTS.filter((it) => ![...names, 'openshift'].includes(it));
const VARIANTS: Record<string, string[]> = {
  base: [],
  ...Object.fromEntries(COMPONENTS.map((it) => [`base + ${it}`, [...(BESIDE[it] ?? []), it]])),
  'all but postgres': [...without('postgres', 'backup'), 'openshift'],
  'all but cloudnative-pg': [...without('cloudnative-pg', 'read-replicas'), 'openshift'],
};
const NAMES = [...Object.keys(VARIANTS), ...OVERLAYS];
const rendered = new Map<string, Manifest[]>();

/** The objects of a variant or overlay, rendered once. */
function all(name: string): Manifest[] {
  const components = VARIANTS[name]?.map((it) => `../../components/${it}`);
  const program = { name: 'program', namespace: 'passengers', literals: ['program.ts='] };
  const configMapGenerator = VARIANTS[name]?.includes('program') ? [program] : [];
  const manifests =
    rendered.get(name) ??
    renderOverlay(
      components ? { resources: ['../../base'], components, configMapGenerator } : overlay(name),
    );
  rendered.set(name, manifests);
  return manifests;
}

/** The value at "Deployment passengers/spec/replicas"; items of lists by number or by name. */
function at(manifests: Manifest[], path: string): Manifest {
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

// --- Rules: each returns the faults of a rendering ------------------------------------

const SCHEMAS: [RegExp, string][] = [
  [/^monitoring\.coreos\.com\//, '@kubernetes-models/prometheus-operator/'],
  [/^postgresql\.cnpg\.io\//, '@kubernetes-models/cloudnative-pg/'],
  [/^(v1|(apps|policy|batch|autoscaling)\/v\d)$/, 'kubernetes-models/'],
  [/^(networking|rbac\.authorization)\.k8s\.io\/v1$/, 'kubernetes-models/'],
];
/** No package has schemas of these; FACTS has their content. */
const NO_SCHEMA = /^(HTTPRoute|Route|ImageStream|BuildConfig)$/;

async function schemaFaults(manifests: Manifest[]): Promise<string[]> {
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
function podFaults(manifests: Manifest[]): string[] {
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
const SECRETS: Record<string, string[]> = {
  passengers: ['JWT_SECRET', 'PGPASSWORD'], // credentials.ts
  'passengers-db-app': ['username', 'password', 'dbname', 'host', 'port', 'uri'], // CloudNativePG
};

/** References between objects: names, selectors, ports, volumes, keys of Secrets. */
function referenceFaults(manifests: Manifest[]): string[] {
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
function contentFaults([namespace, ...others]: Manifest[]): string[] {
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

function storedFaults(manifests: Manifest[]): string[] {
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

const RULES = {
  'is valid by the schemas of Kubernetes and of the operators': schemaFaults,
  'meets Pod Security restricted, with requests and limits': podFaults,
  'has selectors, ports, volumes, accounts and keys of Secrets that exist': referenceFaults,
  'is written as the API server stores it': storedFaults,
  'has one namespace, no Secret, no Job, no latest, no credential': contentFaults,
};

describe('every rendering', { skip }, () => {
  for (const name of NAMES) {
    for (const [holds, rule] of Object.entries(RULES)) {
      test(`${name} ${holds}`, async () => assert.deepEqual(await rule(all(name)), []));
    }
  }
});

const DEPLOYMENT = 'Deployment passengers/spec';
const POD = `${DEPLOYMENT}/template/spec`;
const MAIN = `${POD}/containers/passengers`;
const READ = 'Deployment passengers-read/spec/template/spec/containers/passengers';
const INIT = `${POD}/initContainers/credentials`;

/** Rule, the value that is changed, the change, and the fault; `undefined` deletes. */
const BROKEN: [(typeof RULES)[keyof typeof RULES], string, object, RegExp][] = [
  [schemaFaults, 'Deployment passengers', { apiVersion: 'x/v1' }, /no schema/],
  [schemaFaults, MAIN, { imag: '' }, /containers\/0\/imag/],
  [schemaFaults, DEPLOYMENT, { replicas: '2' }, /replicas/],
  [schemaFaults, DEPLOYMENT, { selector: undefined }, /selector/],
  [podFaults, POD, { hostNetwork: true }, /hostNetwork/],
  [podFaults, POD, { automountServiceAccountToken: undefined }, /automount/],
  [podFaults, `${POD}/volumes/tmp`, { hostPath: {} }, /volume tmp/],
  [podFaults, `${POD}/volumes/tmp`, { emptyDir: {} }, /volume tmp/],
  [podFaults, `${MAIN}/resources/limits`, { cpu: '2' }, /passengers limits/],
  [podFaults, `${MAIN}/securityContext`, { runAsNonRoot: false }, /passengers runAsNonRoot/],
  [podFaults, `${MAIN}/securityContext`, { capabilities: undefined }, /passengers capabilities/],
  [podFaults, `${MAIN}/resources/limits`, { memory: undefined }, /passengers limits/],
  [podFaults, `${INIT}/securityContext`, { readOnlyRootFilesystem: undefined }, /readOnlyRoot/],
  [referenceFaults, 'Service passengers/spec/selector', { x: 'y' }, /passengers selects 0/],
  [referenceFaults, 'Service passengers/spec/ports/0', { targetPort: 'htp' }, /port htp/],
  [referenceFaults, 'RoleBinding credentials/subjects/0', { namespace: 'x' }, /subjects/],
  [referenceFaults, `${MAIN}/env/JWT_SECRET/valueFrom/secretKeyRef`, { key: 'PASS' }, /PASS/],
  [referenceFaults, `${MAIN}/volumeMounts/tmp`, { name: 'temp' }, /volume temp/],
  [
    storedFaults,
    'StatefulSet postgres/spec/volumeClaimTemplates/0',
    { status: undefined },
    /status/,
  ],
  [contentFaults, MAIN, { image: 'passengers:latest' }, /image passengers:latest/],
  [contentFaults, `${MAIN}/env/AUTH`, { name: 'X_TOKEN' }, /credential X_TOKEN/],
  [contentFaults, 'Service passengers', { kind: 'Secret' }, /Secret/],
];

describe('a rule reports', { skip }, () => {
  for (const [rule, path, change, expected] of BROKEN) {
    test(`${path} ${JSON.stringify(change)}`, async () => {
      const manifests = structuredClone(all('install'));
      Object.assign(at(manifests, path), change);
      assert.match((await rule(JSON.parse(JSON.stringify(manifests)))).join(), expected);
    });
  }
});

const MOUNT = '/etc/nginx/trusted.d';

/** By rendering: a path, and the value there. */
const FACTS: Record<string, Record<string, unknown>> = {
  base: {
    [`${DEPLOYMENT}/replicas`]: 2,
    [`${DEPLOYMENT}/strategy/rollingUpdate/maxUnavailable`]: 0,
    [`${MAIN}/startupProbe/httpGet`]: { path: '/healthz', port: 'ops' },
    [`${MAIN}/readinessProbe/httpGet`]: { path: '/readyz', port: 'ops' },
    [`${MAIN}/livenessProbe/httpGet`]: { path: '/healthz', port: 'ops' },
    [`${MAIN}/ports/http/containerPort`]: 8080,
    [`${MAIN}/ports/ops/containerPort`]: 8081,
    [`${MAIN}/env/AUTH/value`]: 'write',
    [`${MAIN}/volumeMounts`]: [{ name: 'tmp', mountPath: '/tmp' }],
    'Service passengers/spec/ports': [{ name: 'http', port: 80, targetPort: 'http' }],
    'Service passengers/spec/type': 'ClusterIP',
  },
  install: {
    [`${DEPLOYMENT}/replicas`]: undefined,
    [`${INIT}/command`]: ['node', '/app/credentials.ts'],
    [`${INIT}/volumeMounts/0/name`]: 'api',
    [`${MAIN}/volumeMounts`]: [{ name: 'tmp', mountPath: '/tmp' }],
    [`${POD}/volumes/api/projected/sources/0/serviceAccountToken/expirationSeconds`]: 600,
    'Role credentials/rules': [{ apiGroups: [''], resources: ['secrets'], verbs: ['create'] }],
    'Service passengers/spec/type': 'ClusterIP',
    'Service passengers-nodeport/spec/type': 'NodePort',
    'Service passengers-nodeport/spec/externalTrafficPolicy': 'Local',
    'Service postgres-pods/spec/clusterIP': 'None',
    'HorizontalPodAutoscaler passengers/spec/minReplicas': 2,
    'PodDisruptionBudget passengers/spec/maxUnavailable': 1,
  },
  test: { 'Ingress passengers/spec/rules/0/host': 'passengers-test.example.org' },
  production: {
    [`${DEPLOYMENT}/replicas`]: undefined,
    [`${MAIN}/volumeMounts/trusted-ingress/mountPath`]: `${MOUNT}/ingress.conf`,
    'Ingress passengers/spec/rules/0/host': 'passengers.example.org',
    'Service passengers/spec/type': 'ClusterIP',
    'ServiceMonitor passengers/spec/endpoints/0/path': '/metrics',
  },
  'all but postgres': {
    [`${MAIN}/env/PGHOST/value`]: 'passengers-db-pooler',
    [`${MAIN}/env/DB_PREPARE/value`]: 'false',
    'Pooler passengers-db-pooler/spec/cluster/name': 'passengers-db',
  },
  'base + backup': {
    'CronJob backup/spec/jobTemplate/spec/template/spec/containers/0/command': [
      'bash',
      '/etc/backup/backup.sh',
    ],
  },
  'base + gateway': {
    [`${MAIN}/env/BASE_PATH/value`]: '/titanic',
    [`${MAIN}/volumeMounts/trusted-gateway/mountPath`]: `${MOUNT}/gateway.conf`,
    'HTTPRoute passengers/spec/rules/0/matches/0/path/value': '/titanic',
    'HTTPRoute passengers/spec/rules/0/filters': undefined,
  },
  'base + network-policy': {
    'NetworkPolicy default/spec': { podSelector: {}, policyTypes: ['Ingress', 'Egress'] },
    'NetworkPolicy passengers/spec/ingress/0': { ports: [{ port: 8080, protocol: 'TCP' }] },
    'NetworkPolicy passengers/spec/ingress/1/ports/0/port': 8081,
    'NetworkPolicy passengers/spec/ingress/1/from/0/namespaceSelector/matchLabels': {
      'kubernetes.io/metadata.name': 'monitoring',
    },
    'NetworkPolicy postgres/spec/egress': undefined,
  },
  'base + openshift': {
    'Route passengers/spec/to': { kind: 'Service', name: 'passengers' },
    'Route passengers/spec/port/targetPort': 'http',
    'Route passengers/spec/tls/termination': 'edge',
    'BuildConfig passengers/spec/output/to/name': 'passengers:source',
    'BuildConfig passengers/spec/strategy/sourceStrategy/from/name': 'nodejs:22-ubi9',
  },
  'base + read-replicas': {
    [`${MAIN}/env/PGHOST/value`]: 'passengers-db-pooler',
    [`${READ}/env/PGHOST/value`]: 'passengers-db-ro',
    [`${READ}/env/BASE_PATH/value`]: '/titanic',
    'Service passengers-read/spec/selector': { 'app.kubernetes.io/name': 'passengers-read' },
    'HTTPRoute passengers-read/spec/rules/0/matches': ['GET', 'HEAD'].map((method) => ({
      path: { type: 'PathPrefix', value: '/titanic' },
      method,
    })),
    'HTTPRoute passengers-read/spec/rules/1/matches/0/headers': [
      { type: 'Exact', name: 'Read-From', value: 'primary' },
    ],
    'HTTPRoute passengers-read/spec/rules/1/backendRefs/0/name': 'passengers',
  },
};

describe('facts', { skip }, () => {
  for (const [name, facts] of Object.entries(FACTS)) {
    for (const [path, value] of Object.entries(facts)) {
      test(`${name}: ${path}`, () => assert.deepEqual(at(all(name), path), value));
    }
  }

  test('preStop and every stopwaitsecs fit into the grace period, whose comment has the sum', () => {
    const waits = [...text('../supervisord.conf').matchAll(/^stopwaitsecs=(\d+)/gm)];
    const preStop = at(all('base'), `${MAIN}/lifecycle/preStop/sleep/seconds`);
    const sum = waits.reduce((total, [, wait]) => total + Number(wait), preStop + 3);
    assert.ok(waits.length >= 2 && at(all('base'), `${POD}/terminationGracePeriodSeconds`) >= sum);
    const comment = new RegExp(`# .*= ${sum}\n +terminationGracePeriodSeconds`);
    assert.match(text('base/workload/deployment.yaml'), comment);
  });

  test('the connections of all replicas, with one more during an update, fit max_connections', () => {
    const value = (name: string) => Number(at(all('production'), `${MAIN}/env/${name}/value`));
    const most = at(all('production'), 'HorizontalPodAutoscaler passengers/spec/maxReplicas');
    const surge = at(all('production'), `${DEPLOYMENT}/strategy/rollingUpdate/maxSurge`);
    assert.ok((most + surge) * value('WEB_CONCURRENCY') * (value('POOL_SIZE') + 4) <= 97);
  });

  test('every line of a list of trusted peers is a comment or one directive of nginx', () => {
    for (const path of ['ingress/ingress.conf', 'gateway/gateway.conf']) {
      for (const line of text(`components/${path}`).trim().split('\n')) {
        assert.match(line, /^(# .*|set_real_ip_from [\d.]+\/\d+;)$/);
      }
    }
  });

  test('credentials.ts makes the keys that are read, in the image of the service', () => {
    const source = text('components/credentials/credentials.ts');
    const [, made = ''] = /stringData: \{(.*)\}/.exec(source) ?? [];
    const keys = [...made.matchAll(/(\w+): random/g)].map(([, key]) => key);
    assert.deepEqual(keys, SECRETS.passengers);
    assert.equal(at(all('install'), `${INIT}/image`), at(all('install'), `${MAIN}/image`));
  });
});

describe('each component says in its first line what it adds and why, and adds it', {
  skip,
}, () => {
  for (const name of COMPONENTS) {
    test(name, () => {
      const kustomization = text(`components/${name}/kustomization.yaml`);
      assert.match(
        kustomization,
        /^# \S.{40,200}\.\napiVersion: kustomize.config.k8s.io\/v1alpha1\n/,
      );
      assert.notDeepEqual(all(`base + ${name}`), all('base'));
      for (const { path } of parse(kustomization).patches ?? []) {
        const { kind } = parse(text(`components/${name}/${path}`));
        assert.ok(kind, `${path} is JSON 6902, which matches nothing without an error`);
      }
    });
  }
});

describe('overlays', { skip }, () => {
  for (const name of OVERLAYS) {
    test(`${name} is one file: the base, components, and a tag that YAML 1.1 reads as text`, () => {
      assert.deepEqual(readdirSync(join(HERE, 'overlays', name)), ['kustomization.yaml']);
      const { resources, images, labels = [] } = overlay(name);
      assert.deepEqual(resources, ['../../base']);
      assert.equal(images[0].newName, 'gcr.io/passengers-example/passengers');
      for (const { pairs } of labels)
        assert.match(Object.keys(pairs).join(), /^app.kubernetes.io\/(instance|version)$/);
      const old = parse(text(`overlays/${name}/kustomization.yaml`), { version: '1.1' });
      assert.equal(typeof old.images[0].newTag, 'string');
    });

    test(`${name} has the components that the table in docs/kubernetes.md marks`, () => {
      const rows = [...text('../docs/kubernetes.md').matchAll(/^\| (.*) \|$/gm)];
      const cells = rows.map(([, row = '']) => row.replaceAll('`', '').split(/ *\| */));
      const [head = [], ...body] = cells;
      const marked = body.filter((row) => row[head.indexOf(name)] === 'x').map(([it]) => it);
      const listed = overlay(name).components.map((path: string) => path.split('/').at(-1));
      assert.deepEqual(marked.sort(), listed.sort());
      assert.deepEqual(body.map(([it]) => it).sort(), [...COMPONENTS].sort());
    });
  }

  test('test has a namespace of its own', () => {
    const namespaces = ['test', 'install', 'production'].map((it) => overlay(it).namespace);
    assert.deepEqual(namespaces, ['passengers-test', 'passengers', 'passengers']);
  });

  test('install/passengers.yaml is overlays/install, rendered, byte for byte', () => {
    const expected = render(join(HERE, 'overlays/install'));
    assert.equal(text('../install/passengers.yaml'), expected, 'run "npm run render"');
  });
});

describe('README.md', { skip }, () => {
  const [, section = ''] = /^## On Kubernetes\n([\s\S]*?)^## /m.exec(text('../README.md')) ?? [];

  test('has a section on Kubernetes of at most 40 lines, whose paths exist', () => {
    const paths = [...section.matchAll(/\b(?:docs|install|kustomize)\/[\w./-]*\w/g)].flat();
    const missing = paths.filter((path) => !existsSync(join(HERE, '..', path)));
    assert.deepEqual(
      new Set(missing),
      new Set(['kustomize/overlays/mine', 'kustomize/overlays/mine/kustomization.yaml']),
    );
    assert.ok(section.trim().split('\n').length <= 40);
  });

  test('has a command that replaces nodeport by ingress', () => {
    assert.match(section, /sed -i s\/nodeport\/ingress\/ kustomize\/overlays\/mine/);
    const { components, ...rest } = overlay('install');
    const swapped = components.map((path: string) => path.replace('nodeport', 'ingress'));
    assert.ok(at(renderOverlay({ components: swapped, ...rest }), 'Ingress passengers'));
  });
});

describe('docs/kubernetes.md', { skip }, () => {
  /** The YAML below a heading, as an overlay; files that it generates from are empty. */
  function example(heading: string): Manifest {
    const [, section = ''] = text('../docs/kubernetes.md').split(`\n## ${heading}\n`);
    return parse(/```yaml\n([\s\S]*?)```/.exec(section)?.[1] ?? '');
  }

  test('a program of your own: the file is mounted where its imports of examples/ resolve', () => {
    const { configMapGenerator, ...rest } = example('A program of your own');
    const [file, source] = configMapGenerator[0].files[0].split('=');
    assert.equal(source, 'books.ts');
    const generator = [{ name: configMapGenerator[0].name, literals: [`${file}=export {}`] }];
    const manifests = renderOverlay({ ...rest, configMapGenerator: generator });
    assert.deepEqual(referenceFaults(manifests), []);
    const { mountPath, subPath } = at(manifests, `${MAIN}/volumeMounts/program`);
    assert.deepEqual(
      [mountPath, subPath],
      [`/app/${at(manifests, `${MAIN}/env/RESOURCE/value`)}`, file],
    );
    assert.match(text('../Dockerfile'), /^COPY examples\/\*\.ts examples\/$/m);
  });

  test('who the client is: an overlay replaces the list of trusted peers', () => {
    const { patches, ...rest } = overlay('test');
    const both = [...patches, ...example('Who the client is').patches];
    const merged = renderOverlay({ ...rest, patches: both });
    const [list] = merged.filter(({ metadata }) => metadata.name.startsWith('trusted-ingress'));
    assert.match(
      list.data['ingress.conf'],
      /^set_real_ip_from 35.191.0.0\/16; .*203.0.113.7\/32;$/,
    );
    assert.deepEqual(referenceFaults(merged), []);
  });

  test('two installs in one namespace: no selector and no name of one means the other', () => {
    const [first, second] = [
      all('install'),
      renderOverlay(example('Two installs in one namespace')),
    ];
    const name = ({ kind, metadata }: Manifest) => `${kind} ${metadata.name}`;
    const common = first.map(name).filter((it) => second.map(name).includes(it));
    assert.deepEqual(common, ['Namespace passengers']);
    assert.deepEqual(referenceFaults(second), []);
    assert.deepEqual(referenceFaults([...first, ...second]), []);
    const host = at(
      second,
      'Deployment second-passengers/spec/template/spec/containers/0/env/PGHOST/value',
    );
    assert.ok(at(second, `Service ${host}`));
  });
});

const DIGEST = `sha256:${'a'.repeat(64)}`;
const RELEASES: Record<string, object> = {
  ':main-0123abc': { newTag: 'main-0123abc' },
  ':1.10': { newTag: '1.10' },
  [`:main-0123abc@${DIGEST}`]: { newTag: 'main-0123abc', digest: DIGEST },
  [`@${DIGEST}`]: { digest: DIGEST },
};

describe('the next release changes the image of the service and version labels', { skip }, () => {
  for (const name of OVERLAYS) {
    for (const [image, release] of Object.entries(RELEASES)) {
      test(`${name} at ${image}`, () => {
        const { images, ...rest } = overlay(name);
        const { newName } = images[0];
        const labels = [...rest.labels, { pairs: { 'app.kubernetes.io/version': '0.0.0-test' } }];
        images[0] = { name: 'passengers', newName, ...release };
        const next = JSON.stringify(renderOverlay({ ...rest, images, labels }));
        const undone = next
          .replaceAll(/"app.kubernetes.io\/version":"0.0.0-test",?/g, '')
          .replaceAll(`${newName}${image}`, `${newName}:${overlay(name).images[0].newTag}`);
        const before = JSON.stringify(all(name));
        assert.ok(next.includes(image));
        assert.equal(undone.replaceAll(',}', '}').replaceAll(/"labels":{},?/g, ''), before);
      });
    }
  }
});
