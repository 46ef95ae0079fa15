/**
 * Checks the renderings of kustomize/ without a cluster: schemas, Pod Security `restricted`,
 * references between objects, and what the next release changes. Needs `kubectl` or `kustomize`.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cp, mkdir, writeFile } from 'node:fs/promises';
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

function text(...path: string[]): string {
  return readFileSync(join(HERE, ...path), 'utf8');
}

function render(directory: string): string {
  const [command = 'kubectl', ...args] = tool ?? [];
  return execFileSync(command, [...args, directory], { encoding: 'utf8', stdio: 'pipe' });
}

function read(yaml: string): Manifest[] {
  return parseAllDocuments(yaml).map((document) => document.toJS());
}

// --- What is rendered ---------------------------------------------------------------

/** Components that another one needs beside it; openshift comes last because it patches others. */
const BESIDE: Record<string, string[]> = { openshift: ['postgres', 'credentials'] };
const allBut = (without: string) => [
  ...COMPONENTS.filter((name) => name !== without && name !== 'openshift'),
  'openshift',
];
const VARIANTS: Record<string, string[]> = {
  base: [],
  ...Object.fromEntries(
    COMPONENTS.map((name) => [`base + ${name}`, [...(BESIDE[name] ?? []), name]]),
  ),
  'all but postgres': allBut('postgres'),
  'all but cloudnative-pg': allBut('cloudnative-pg'),
};
const NAMES = [...Object.keys(VARIANTS), ...OVERLAYS];

const work = mkdtempSync(join(tmpdir(), 'passengers kustomize-'));
after(() => rmSync(work, { recursive: true }));

function renderVariant(components: string[]): string {
  const directory = mkdtempSync(join(work, 'variant-'));
  const from = (path: string) => relative(directory, join(HERE, path));
  const kustomization = {
    resources: [from('base')],
    components: components.map((name) => from(`components/${name}`)),
  };
  writeFileSync(join(directory, 'kustomization.yaml'), JSON.stringify(kustomization));
  return render(directory);
}

const rendered = new Map<string, Manifest[]>();

/** The objects of a variant or overlay, rendered once. */
function all(name: string): Manifest[] {
  const components = VARIANTS[name];
  const manifests =
    rendered.get(name) ??
    read(components ? renderVariant(components) : render(join(HERE, 'overlays', name)));
  rendered.set(name, manifests);
  return manifests;
}

/** The value at "Deployment passengers/spec/replicas"; items of lists by number or by their name. */
function at(manifests: Manifest[], path: string): Manifest {
  const [object, ...keys] = path.split('/');
  const found = manifests.find(({ kind, metadata }) => `${kind} ${metadata.name}` === object);
  assert.ok(found, `no ${object}`);
  return keys.reduce(
    (value, key) => value?.[key] ?? (Array.isArray(value) ? named(value, key) : undefined),
    found,
  );
}

function named(list: Manifest[], name: string): Manifest {
  return list.find((item) => item.name === name);
}

function podsOf(manifests: Manifest[]): Manifest[] {
  return manifests
    .filter(({ kind }) => ['Deployment', 'StatefulSet'].includes(kind))
    .map(({ spec }) => spec.template);
}

function containersOf({ spec }: Manifest): Manifest[] {
  return [...(spec.initContainers ?? []), ...spec.containers];
}

// --- Rules: each returns the faults of a rendering ------------------------------------

type Rule = (manifests: Manifest[]) => string[] | Promise<string[]>;

const SCHEMAS: [RegExp, string][] = [
  [/^monitoring\.coreos\.com\//, '@kubernetes-models/prometheus-operator/'],
  [/^postgresql\.cnpg\.io\//, '@kubernetes-models/cloudnative-pg/'],
  [/^(v1|(apps|policy|batch|autoscaling)\/v\d)$/, 'kubernetes-models/'],
  [/^(networking|rbac\.authorization)\.k8s\.io\/v1$/, 'kubernetes-models/'],
];
/** No package has schemas of these; FACTS compares their content. */
const NO_SCHEMA = ['HTTPRoute', 'Route', 'ImageStream', 'BuildConfig'];

async function schemaFaults(manifests: Manifest[]): Promise<string[]> {
  const faults = await Promise.all(manifests.map(faultsOfOne));
  return faults.flat();
}

async function faultsOfOne(manifest: Manifest): Promise<string[]> {
  const { apiVersion, kind, metadata } = manifest;
  const from = SCHEMAS.find(([pattern]) => pattern.test(apiVersion))?.[1];
  if (!from) return NO_SCHEMA.includes(kind) ? [] : [`no schema for ${apiVersion} ${kind}`];
  const { [kind]: model } = await import(`${from}${apiVersion}/${kind}`);
  const unread = new Set<string>();
  try {
    model.prototype.validate.call(watch(manifest, '', unread));
  } catch (error) {
    return [`${kind} ${metadata.name}: ${error}`];
  }
  return [...unread].map((path) => `unknown field ${path}`);
}

/** The validators ignore unknown fields, an API server warns: collects what they never read. */
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
  /^(configMap|csi|downwardAPI|emptyDir|ephemeral|persistentVolumeClaim|projected|secret)$/;

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
    for (const { name, ...volume } of spec.volumes ?? []) {
      ok[`volume ${name}`] = Object.keys(volume).every((type) => VOLUMES.test(type));
    }
    for (const { name, resources, ports = [], securityContext } of containersOf(pod)) {
      const context = { ...spec.securityContext, ...securityContext };
      const { runAsUser, capabilities } = context;
      Object.assign(ok, {
        [`${name} runAsNonRoot`]: context.runAsNonRoot === true,
        [`${name} runAsUser`]: anyUser ? runAsUser === undefined : runAsUser > 0,
        [`${name} seccompProfile`]: context.seccompProfile?.type === 'RuntimeDefault',
        [`${name} allowPrivilegeEscalation`]: context.allowPrivilegeEscalation === false,
        [`${name} privileged`]: !context.privileged && !context.procMount,
        [`${name} readOnlyRootFilesystem`]: context.readOnlyRootFilesystem === true,
        [`${name} capabilities`]: capabilities?.drop?.includes('ALL') && !capabilities.add,
        [`${name} hostPort`]: ports.every(({ hostPort }: Manifest) => !hostPort),
        [`${name} requests`]: resources?.requests?.cpu && resources.requests.memory,
        [`${name} limits`]: resources?.limits?.cpu && resources.limits.memory,
      });
    }
    return Object.keys(ok).filter((what) => !ok[what]);
  });
}

/** The keys of the Secrets that a rendering reads and does not contain. */
const SECRETS: Record<string, string[]> = {
  passengers: ['JWT_SECRET', 'PGPASSWORD'], // credentials.ts
  'passengers-db-app': ['username', 'password', 'dbname', 'host', 'port', 'uri'], // CloudNativePG
};

type Lookup = {
  has: (kind: string, name: string) => boolean;
  /** The workload that labels select, if it is one. */
  pod: (selector: Manifest) => Manifest;
  services: (selector?: Manifest) => Manifest[];
};

function matches(labels: Manifest, selector: Manifest = {}): boolean {
  return Object.entries(selector).every(([name, value]) => labels?.[name] === value);
}

function hasPort(pod: Manifest, port: string | number): boolean {
  const ports: Manifest[] = pod
    ? containersOf(pod).flatMap((container) => container.ports ?? [])
    : [];
  return ports.some(({ name, containerPort }) => port === name || port === containerPort);
}

function isBackend({ services }: Lookup, { name, port }: Manifest): boolean {
  const service = services().find(({ metadata }) => metadata.name === name);
  return service?.spec.ports.some((it: Manifest) => it.name === port.name || it.port === port);
}

/** By kind: whether what an object refers to exists. */
const MEETS: Record<string, (it: Manifest, lookup: Lookup) => unknown> = {
  Service: ({ spec }, { pod }) =>
    spec.ports.every(({ targetPort }: Manifest) => hasPort(pod(spec.selector), targetPort)),
  Deployment: ({ spec }) => matches(spec.template.metadata.labels, spec.selector.matchLabels),
  StatefulSet: ({ spec }, { has }) =>
    matches(spec.template.metadata.labels, spec.selector.matchLabels) &&
    has('Service', spec.serviceName),
  PodDisruptionBudget: ({ spec }, { pod }) => pod(spec.selector.matchLabels),
  HorizontalPodAutoscaler: ({ spec }, { has }) =>
    has(spec.scaleTargetRef.kind, spec.scaleTargetRef.name),
  ServiceMonitor: ({ spec }, { services }) =>
    services(spec.selector.matchLabels).every((it) => named(it.spec.ports, spec.endpoints[0].port)),
  Ingress: ({ spec }, lookup) => isBackend(lookup, spec.rules[0].http.paths[0].backend.service),
  HTTPRoute: ({ spec }, lookup) =>
    spec.rules.every((rule: Manifest) => isBackend(lookup, rule.backendRefs[0])),
  RoleBinding: ({ metadata, roleRef, subjects: [subject] }, { has }) =>
    has(roleRef.kind, roleRef.name) &&
    has(subject.kind, subject.name) &&
    subject.namespace === metadata.namespace,
};

/** References between objects: selectors, ports, volumes, accounts, keys of Secrets. */
function referenceFaults(manifests: Manifest[]): string[] {
  const has = (kind: string, name: string) =>
    manifests.some((it) => it.kind === kind && it.metadata.name === name);
  const pod = (selector: Manifest) => {
    const found = podsOf(manifests).filter(({ metadata }) => matches(metadata.labels, selector));
    return found.length === 1 ? found[0] : undefined;
  };
  const services = (selector?: Manifest) =>
    manifests.filter((it) => it.kind === 'Service' && matches(it.metadata.labels, selector));
  const objects = manifests
    .filter((it) => MEETS[it.kind] && !MEETS[it.kind]?.(it, { has, pod, services }))
    .map(({ kind, metadata }) => `${kind} ${metadata.name} refers to nothing`);
  const claims = manifests.flatMap(({ spec }) => spec?.volumeClaimTemplates ?? []);
  const volumes = claims.map(({ metadata }) => metadata.name);
  return [...objects, ...podsOf(manifests).flatMap((pod) => podReferences(pod, has, volumes))];
}

function podReferences(pod: Manifest, has: Lookup['has'], claims: string[]): string[] {
  const { volumes = [], serviceAccountName: account } = pod.spec;
  const names = [...volumes.map(({ name }: Manifest) => name), ...claims];
  const ok: Record<string, unknown> = {};
  if (account) ok[`no ServiceAccount ${account}`] = has('ServiceAccount', account);
  for (const { configMap } of volumes) {
    if (configMap) ok[`no ConfigMap ${configMap.name}`] = has('ConfigMap', configMap.name);
  }
  for (const { volumeMounts, env = [], ...container } of containersOf(pod)) {
    for (const { name } of volumeMounts) ok[`no volume ${name}`] = names.includes(name);
    for (const probe of ['startupProbe', 'readinessProbe', 'livenessProbe']) {
      const port = container[probe]?.httpGet?.port;
      ok[`${probe}: no port ${port}`] = port === undefined || hasPort(pod, port);
    }
    for (const { name, value, valueFrom } of env) {
      const key = valueFrom?.secretKeyRef;
      ok[`${name}: value and valueFrom`] = (value === undefined) !== (valueFrom === undefined);
      ok[`${name}: no key ${key?.key} in the Secret ${key?.name}`] =
        !key || key.optional || SECRETS[key.name]?.includes(key.key);
    }
  }
  return Object.keys(ok).filter((fault) => !ok[fault]);
}

/** What may be in a rendering at all. */
function contentFaults([first, ...others]: Manifest[]): string[] {
  const manifests = [first, ...others];
  const containers = podsOf(manifests).flatMap(containersOf);
  const env: Manifest[] = containers.flatMap((container) => container.env ?? []);
  const enforced = first.metadata.labels?.['pod-security.kubernetes.io/enforce'] === 'restricted';
  return [
    ...(first.kind === 'Namespace' && enforced ? [] : ['no restricted Namespace comes first']),
    ...manifests.filter(({ kind }) => /^(Secret|Job|Pod)$/.test(kind)).map(({ kind }) => kind),
    ...others
      .filter(({ metadata }) => metadata.namespace !== first.metadata.name)
      .map(({ metadata }) => `${metadata.name} is in another namespace`),
    ...containers
      .filter(({ image }) => !/:(?!latest$)[\w.-]+$|@sha256:/.test(image))
      .map(({ image }) => `image ${image}`),
    ...env
      .filter(({ name, value }) => value && /PASSWORD|SECRET|TOKEN|DATABASE_URL/.test(name))
      .map(({ name }) => `credential ${name}`),
  ];
}

const RULES: Record<string, Rule> = {
  'is valid by the schemas of Kubernetes and of the operators': schemaFaults,
  'meets Pod Security restricted, with requests and limits': podFaults,
  'has selectors, ports, volumes, accounts and keys of Secrets that exist': referenceFaults,
  'has one namespace, no Secret, no Job, no latest, no credential': contentFaults,
};

describe('every rendering', { skip }, () => {
  for (const name of NAMES) {
    for (const [holds, rule] of Object.entries(RULES)) {
      test(`${name} ${holds}`, async () => assert.deepEqual(await rule(all(name)), []));
    }
  }
});

const POD = 'Deployment passengers/spec/template/spec';
const MAIN = `${POD}/containers/passengers`;
const INIT = `${POD}/initContainers/credentials`;

/** Rule, the value that is broken, what with, and the fault; `undefined` deletes. */
const BROKEN: [Rule, string, Record<string, unknown>, RegExp][] = [
  [schemaFaults, 'Deployment passengers', { kind: 'Thing', apiVersion: 'x/v1' }, /no schema/],
  [schemaFaults, 'Deployment passengers/spec', { replicass: 2 }, /\/spec\/replicass/],
  [schemaFaults, MAIN, { imag: '' }, /containers\/0\/imag/],
  [schemaFaults, 'Deployment passengers/spec', { replicas: '2' }, /replicas/],
  [schemaFaults, 'Deployment passengers/spec', { selector: undefined }, /selector/],
  [schemaFaults, 'Deployment passengers/spec/strategy', { type: 'Rolling' }, /strategy/],
  [podFaults, POD, { hostNetwork: true }, /hostNetwork/],
  [podFaults, POD, { automountServiceAccountToken: undefined }, /automount/],
  [podFaults, `${POD}/volumes/tmp`, { hostPath: {} }, /volume tmp/],
  [podFaults, `${MAIN}/securityContext`, { runAsNonRoot: false }, /passengers runAsNonRoot/],
  [podFaults, `${MAIN}/securityContext`, { runAsUser: 0 }, /passengers runAsUser/],
  [podFaults, `${MAIN}/securityContext`, { capabilities: undefined }, /passengers capabilities/],
  [podFaults, `${MAIN}/resources/limits`, { memory: undefined }, /passengers limits/],
  [podFaults, `${INIT}/securityContext`, { seccompProfile: {} }, /credentials seccompProfile/],
  [podFaults, `${INIT}/securityContext`, { allowPrivilegeEscalation: undefined }, /Escalation/],
  [podFaults, `${INIT}/securityContext`, { readOnlyRootFilesystem: undefined }, /readOnlyRoot/],
  [referenceFaults, 'Service passengers/spec/selector', { x: 'y' }, /Service passengers refers/],
  [
    referenceFaults,
    'Service passengers/spec/ports/0',
    { targetPort: 'htp' },
    /Service passengers refers/,
  ],
  [referenceFaults, 'RoleBinding credentials/subjects/0', { namespace: 'x' }, /RoleBinding/],
  [
    referenceFaults,
    `${MAIN}/env/JWT_SECRET/valueFrom/secretKeyRef`,
    { key: 'PASS' },
    /no key PASS/,
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

/** Rendering, path, and the value there. */
const FACTS: [string, string, unknown][] = [
  ['install', 'Deployment passengers/spec/replicas', 2],
  ['install', 'Deployment passengers/spec/strategy/rollingUpdate/maxUnavailable', 0],
  ['install', `${MAIN}/startupProbe/httpGet`, { path: '/healthz', port: 'ops' }],
  ['install', `${MAIN}/readinessProbe/httpGet`, { path: '/readyz', port: 'ops' }],
  ['install', `${MAIN}/livenessProbe/httpGet`, { path: '/healthz', port: 'ops' }],
  ['install', `${MAIN}/ports/http/containerPort`, 8080],
  ['install', `${MAIN}/ports/ops/containerPort`, 8081],
  ['install', 'Service passengers/spec/ports', [{ name: 'http', port: 80, targetPort: 'http' }]],
  ['install', 'Service passengers/spec/type', 'NodePort'],
  ['install', `${MAIN}/env/AUTH/value`, 'write'],
  ['install', `${INIT}/command`, ['node', '/app/credentials.ts']],
  ['install', 'Role credentials/rules/0/resources', ['secrets']],
  ['install', 'Role credentials/rules/0/verbs', ['create']],
  [
    'install',
    `${POD}/volumes/api/projected/sources/0/serviceAccountToken`,
    { path: 'token', expirationSeconds: 600 },
  ],
  [
    'install',
    'StatefulSet postgres/spec/template/spec/containers/0/volumeMounts/data/mountPath',
    '/var/lib/postgresql',
  ],
  ['production', 'Deployment passengers/spec/replicas', undefined],
  ['production', 'HorizontalPodAutoscaler passengers/spec/minReplicas', 2],
  ['all but postgres', 'Pooler passengers-db-pooler/spec/cluster/name', 'passengers-db'],
  ['all but postgres', `${MAIN}/env/PGHOST/value`, 'passengers-db-pooler'],
  ['all but postgres', `${MAIN}/env/DB_PREPARE/value`, 'false'],
  ['base + network-policy', 'NetworkPolicy default/spec/podSelector', {}],
  ['base + network-policy', 'NetworkPolicy default/spec/policyTypes', ['Ingress', 'Egress']],
  ['base + network-policy', 'NetworkPolicy passengers/spec/ingress/0', { ports: [{ port: 8080 }] }],
  ['base + network-policy', 'NetworkPolicy passengers/spec/ingress/1/ports/0/port', 8081],
  [
    'base + network-policy',
    'NetworkPolicy passengers/spec/ingress/1/from/0/namespaceSelector/matchLabels',
    { 'kubernetes.io/metadata.name': 'monitoring' },
  ],
  [
    'base + network-policy',
    'NetworkPolicy postgres/spec/ingress/0/from/0/podSelector/matchLabels',
    { 'app.kubernetes.io/name': 'passengers' },
  ],
  ['base + network-policy', 'NetworkPolicy postgres/spec/egress', undefined],
  ['base + gateway', 'HTTPRoute passengers/spec/rules/0/matches/0/path/value', '/titanic'],
  ['base + openshift', 'Route passengers/spec/to', { kind: 'Service', name: 'passengers' }],
  ['base + openshift', 'Route passengers/spec/port/targetPort', 'http'],
  ['base + openshift', 'Route passengers/spec/tls/termination', 'edge'],
  ['base + openshift', 'BuildConfig passengers/spec/output/to/name', 'passengers:source'],
  [
    'base + openshift',
    'BuildConfig passengers/spec/strategy/sourceStrategy/from/name',
    'nodejs:22-ubi9',
  ],
];

describe('facts', { skip }, () => {
  for (const [name, path, expected] of FACTS) {
    const shown = JSON.stringify(expected) ?? 'absent';
    test(`${name}: ${path} is ${shown}`, () => assert.deepEqual(at(all(name), path), expected));
  }

  test('preStop and every stopwaitsecs fit into the grace period, whose comment has the sum', () => {
    const waits = [...text('../supervisord.conf').matchAll(/^stopwaitsecs=(\d+)/gm)];
    const { terminationGracePeriodSeconds: grace, containers } = at(all('base'), POD);
    const preStop = containers[0].lifecycle.preStop.sleep.seconds;
    const sum = waits.reduce((total, [, wait]) => total + Number(wait), preStop + 3);
    assert.ok(waits.length >= 2 && grace >= sum, String(sum));
    const comment = new RegExp(`# .*= ${sum}\n +terminationGracePeriodSeconds`);
    assert.match(text('base/deployment.yaml'), comment);
  });

  test('the connections of all replicas and of one more during an update fit max_connections', () => {
    const { strategy, template } = at(all('production'), 'Deployment passengers/spec');
    const env: Manifest[] = template.spec.containers[0].env;
    const value = (name: string) => Number(env.find((it) => it.name === name)?.value);
    const { maxReplicas } = at(all('production'), 'HorizontalPodAutoscaler passengers/spec');
    const replicas = maxReplicas + strategy.rollingUpdate.maxSurge;
    const connections = replicas * value('WEB_CONCURRENCY') * (value('POOL_SIZE') + 4);
    assert.ok(connections <= 97, String(connections));
  });

  test('only the initContainer mounts the token, and it runs the image of the service', () => {
    const [init, main] = containersOf(at(all('install'), 'Deployment passengers/spec/template'));
    const mounts = (container: Manifest) =>
      container.volumeMounts.map(({ name }: Manifest) => name);
    assert.deepEqual([mounts(init), mounts(main)], [['api'], ['tmp']]);
    assert.equal(init.image, main.image);
  });

  test('the keys that credentials.ts makes are those that are read', () => {
    const [, made = ''] =
      /stringData: \{(.*)\}/.exec(text('components/credentials/credentials.ts')) ?? [];
    const keys = [...made.matchAll(/(\w+): random/g)].map(([, key]) => key);
    assert.deepEqual(keys, SECRETS.passengers);
  });
});

describe('each component', { skip }, () => {
  for (const name of COMPONENTS) {
    const kustomization = text('components', name, 'kustomization.yaml');

    test(`${name} begins with one line that says what it adds and why`, () => {
      const [line = '', version] = kustomization.split('\n');
      assert.match(line, /^# \S.{40,200}\.$/);
      assert.equal(version, 'apiVersion: kustomize.config.k8s.io/v1alpha1');
    });

    test(`${name} changes the rendering`, () => {
      assert.notDeepEqual(all(`base + ${name}`), all('base'));
    });

    test(`${name} has no JSON 6902 patch, which matches nothing without an error`, () => {
      for (const { path } of parse(kustomization).patches ?? []) {
        assert.ok(parse(text('components', name, path)).kind, path);
      }
    });
  }
});

describe('overlays', { skip }, () => {
  for (const name of OVERLAYS) {
    test(`${name} is one file with a list of components, and names the same image`, () => {
      assert.deepEqual(readdirSync(join(HERE, 'overlays', name)), ['kustomization.yaml']);
      const { images, labels = [], ...rest } = parse(text('overlays', name, 'kustomization.yaml'));
      assert.deepEqual(
        [Object.keys(rest), rest.resources],
        [['apiVersion', 'kind', 'namespace', 'resources', 'components'], ['../../base']],
      );
      for (const label of labels) assert.deepEqual(Object.keys(label), ['pairs']); // of a release
      assert.deepEqual(
        images.map(({ name, newName }: Manifest) => [name, newName]),
        [['passengers', 'gcr.io/passengers-example/passengers']],
      );
    });

    test(`${name} has a tag that kustomize, which reads YAML 1.1, takes as text`, () => {
      const { images } = parse(text('overlays', name, 'kustomization.yaml'), { version: '1.1' });
      assert.equal(typeof images[0].newTag, 'string');
    });

    test(`${name} has the components that the table in README.md marks`, () => {
      const rows = text('README.md')
        .split('\n')
        .filter((line) => line.startsWith('|'));
      const cells = rows.map((row) =>
        row
          .replaceAll('`', '')
          .split('|')
          .map((cell) => cell.trim()),
      );
      const [head = [], , ...body] = cells;
      const marked = body.filter((row) => row[head.indexOf(name)] === 'x').map(([, one]) => one);
      const { components } = parse(text('overlays', name, 'kustomization.yaml'));
      const listed = components.map((path: string) => path.split('/').at(-1));
      assert.deepEqual(marked.sort(), listed.sort());
      assert.deepEqual(body.map(([, one]) => one).sort(), [...COMPONENTS].sort());
    });
  }

  test('test has a namespace of its own', () => {
    const namespaces = OVERLAYS.map((name) => [name, all(name)[0].metadata.name]);
    assert.deepEqual(Object.fromEntries(namespaces), {
      install: 'passengers',
      production: 'passengers',
      test: 'passengers-test',
    });
  });
});

describe('install/passengers.yaml', { skip }, () => {
  test('is overlays/install, rendered, byte for byte', () => {
    const expected = render(join(HERE, 'overlays/install'));
    assert.equal(text('../install/passengers.yaml'), expected, 'run "npm run render"');
  });

  test('is a whole system', () => {
    const objects = all('install').map(({ kind, metadata }) => `${kind} ${metadata.name}`);
    assert.deepEqual(
      objects.map((object) => object.replace(/-\w{10}$/, '')),
      [
        'Namespace passengers',
        'ServiceAccount passengers',
        'Role credentials',
        'RoleBinding credentials',
        'ConfigMap postgres-start',
        'Service passengers',
        'Service postgres',
        'Deployment passengers',
        'StatefulSet postgres',
      ],
    );
  });
});

/** A copy of kustomize/ with one overlay changed, rendered. */
async function renderChanged(overlay: string, change: (kustomization: Manifest) => void) {
  const copy = mkdtempSync(join(work, 'copy-'));
  for (const part of ['base', 'components']) {
    await cp(join(HERE, part), join(copy, part), { recursive: true });
  }
  const directory = join(copy, 'overlays', overlay);
  await mkdir(directory, { recursive: true });
  const kustomization = parse(text('overlays', overlay, 'kustomization.yaml'));
  change(kustomization);
  await writeFile(join(directory, 'kustomization.yaml'), JSON.stringify(kustomization));
  return read(render(directory));
}

describe('README.md', { skip }, () => {
  const readme = text('../README.md');
  const [, section = ''] = /^## On Kubernetes\n([\s\S]*?)^## /m.exec(readme) ?? [];

  test('has one section on Kubernetes, of at most 40 lines, whose paths exist', () => {
    const lines = section.trim().split('\n').length;
    assert.ok(lines > 10 && lines <= 40, String(lines));
    const paths = [...section.matchAll(/\b(?:install|kustomize)\/[\w./-]*\w/g)].flat();
    for (const path of paths.filter((path) => !path.includes('overlays/mine'))) {
      assert.ok(existsSync(join(HERE, '..', path)), path);
    }
  });

  test('its command that replaces nodeport by ingress gives an Ingress', async () => {
    assert.match(section, /sed -i s\/nodeport\/ingress\/ kustomize\/overlays\/mine/);
    const mine = await renderChanged('install', (it) => {
      it.components = it.components.map((path: string) => path.replace('nodeport', 'ingress'));
    });
    assert.ok(at(mine, 'Ingress passengers'));
  });
});

describe('the next release, applied over this one, changes images and version labels only', {
  skip,
}, () => {
  const DIGEST = `sha256:${'a'.repeat(64)}`;
  const RELEASES: [string, Record<string, string>][] = [
    [':main-0123abc', { newTag: 'main-0123abc' }],
    [':1.10', { newTag: '1.10' }],
    [':2024e5', { newTag: '2024e5' }],
    [`:main-0123abc@${DIGEST}`, { newTag: 'main-0123abc', digest: DIGEST }],
    [`@${DIGEST}`, { digest: DIGEST }],
  ];

  /** Every path at which two values differ. */
  function differences(before: Manifest, after: Manifest, path = ''): string[] {
    if (typeof before !== 'object' || typeof after !== 'object' || !before || !after) {
      return Object.is(before, after) ? [] : [path];
    }
    const keys = [...new Set([...Object.keys(before), ...Object.keys(after)])];
    return keys.flatMap((key) => differences(before[key], after[key], `${path}/${key}`));
  }

  for (const name of OVERLAYS) {
    for (const [image, release] of RELEASES) {
      test(`${name} at ${image}`, async () => {
        const next = await renderChanged(name, (it) => {
          const [{ newName }] = it.images;
          it.images = [{ name: 'passengers', newName, ...release }];
          it.labels = [{ pairs: { 'app.kubernetes.io/version': '0.0.0-test' } }];
        });
        const index = next.findIndex(({ kind }) => kind === 'Deployment');
        const images = new RegExp(`^/${index}/spec/template/spec/(init)?[cC]ontainers/0/image$`);
        const labels = /^\/\d+\/metadata\/labels(\/app\.kubernetes\.io\/version)?$/;
        const paths = differences(all(name), next).filter((path) => !labels.test(path));
        assert.ok(paths.length === 2 && paths.every((path) => images.test(path)), paths.join());
        const ours = containersOf(next[index].spec.template).map((container) => container.image);
        assert.deepEqual(new Set(ours), new Set([`gcr.io/passengers-example/passengers${image}`]));
      });
    }
  }
});
