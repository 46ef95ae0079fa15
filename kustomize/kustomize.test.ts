/**
 * What kustomize/ renders to, judged as a cluster would: schemas, Pod Security `restricted`, names
 * that have to meet. No cluster is needed; `kubectl` or `kustomize` is.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parse, parseAllDocuments } from 'yaml';
import { startDatabase, startService } from '../test/harness.ts';

// biome-ignore lint/suspicious/noExplicitAny: tests look into whatever was rendered
type Manifest = any;

const HERE = fileURLToPath(new URL('./', import.meta.url));
const INSTALLED = join(HERE, '../install/passengers.yaml');
const SUPERVISORD = join(HERE, '../supervisord.conf');
const OVERLAYS = readdirSync(join(HERE, 'overlays'));
const COMPONENTS = readdirSync(join(HERE, 'components'));

/** Google's kubectl asks a server for its version before it renders; at this port there is none. */
const NOWHERE = '--server=http://127.0.0.1:1';
const TOOLS = [
  ['kubectl', NOWHERE, 'kustomize'],
  ['kustomize', 'build'],
];
const tool = TOOLS.find(([command = '']) => !spawnSync(command, ['--help']).error);
const skip = !tool && !process.env.CI && 'neither kubectl nor kustomize is installed';

/** The text that a directory renders to. */
function render(directory: string): string {
  const [command = 'kubectl', ...args] = tool ?? [];
  return execFileSync(command, [...args, directory], { encoding: 'utf8', stdio: 'pipe' });
}

function read(text: string): Manifest[] {
  return parseAllDocuments(text).map((document) => document.toJS());
}

/** What is rendered and judged, by name. */
const BESIDE: Record<string, string[]> = { openshift: ['postgres', 'credentials'] };
const LAST = 'openshift'; // it changes what others add
const VARIANTS: Record<string, string[]> = {
  base: [],
  ...Object.fromEntries(COMPONENTS.map((one) => [`base + ${one}`, [...(BESIDE[one] ?? []), one]])),
  'all but postgres': allBut('postgres'),
  'all but cloudnative-pg': allBut('cloudnative-pg'),
};

function allBut(without: string): string[] {
  return [...COMPONENTS.filter((one) => one !== without && one !== LAST), LAST];
}

const rendered = new Map<string, Manifest[]>();
let work = '';

before(async () => {
  if (skip) return;
  work = await mkdtemp(join(tmpdir(), 'passengers kustomize-'));
  for (const [name, components] of Object.entries(VARIANTS)) {
    const directory = await mkdtemp(join(work, 'variant-'));
    const from = (path: string) => relative(directory, join(HERE, path));
    const kustomization = {
      apiVersion: 'kustomize.config.k8s.io/v1beta1',
      kind: 'Kustomization',
      resources: [from('base')],
      components: components.map((one) => from(`components/${one}`)),
    };
    await writeFile(join(directory, 'kustomization.yaml'), JSON.stringify(kustomization));
    rendered.set(name, read(render(directory)));
  }
  for (const name of OVERLAYS) rendered.set(name, read(render(join(HERE, 'overlays', name))));
});

after(() => work && rm(work, { recursive: true }));

function all(name: string): Manifest[] {
  const manifests = rendered.get(name);
  assert.ok(manifests && manifests.length > 0, name);
  return manifests;
}

function one(name: string, kind: string, called = 'passengers'): Manifest {
  const found = all(name).find(({ kind: is, metadata }) => is === kind && metadata.name === called);
  assert.ok(found, `${name} has no ${kind} ${called}`);
  return found;
}

function templates(manifests: Manifest[]): { name: string; template: Manifest }[] {
  return manifests
    .filter(({ kind }) => kind === 'Deployment' || kind === 'StatefulSet')
    .map(({ kind, metadata, spec }) => ({
      name: `${kind} ${metadata.name}`,
      template: spec.template,
    }));
}

function containersOf({ initContainers = [], containers }: Manifest): Manifest[] {
  return [...initContainers, ...containers];
}

// --- Schemas --------------------------------------------------------------------

const PACKAGES: [RegExp, string][] = [
  [/^monitoring\.coreos\.com\//, '@kubernetes-models/prometheus-operator/'],
  [/^postgresql\.cnpg\.io\//, '@kubernetes-models/cloudnative-pg/'],
  [
    /^(v1|apps\/v1|policy\/v1|autoscaling\/v2|(networking|rbac\.authorization)\.k8s\.io\/v1)$/,
    'kubernetes-models/',
  ],
];
/** No package carries these; what is said in them is compared word by word below. */
const NO_SCHEMA = ['HTTPRoute', 'Route', 'ImageStream', 'BuildConfig'];

/**
 * The faults of a manifest. The packages' validators pass unknown fields over, which an API server
 * does not, so a proxy tells which fields they never asked for.
 */
async function schemaFaults(manifest: Manifest): Promise<string[]> {
  const { apiVersion, kind } = manifest;
  const from = PACKAGES.find(([pattern]) => pattern.test(apiVersion))?.[1];
  if (!from) return NO_SCHEMA.includes(kind) ? [] : [`no schema for ${apiVersion} ${kind}`];
  const { [kind]: model } = await import(`${from}${apiVersion}/${kind}`);
  const unread = new Set<string>();
  try {
    model.prototype.validate.call(watch(manifest, '', unread));
  } catch (error) {
    return [String(error)];
  }
  return [...unread].map((path) => `unknown field ${path}`);
}

function watch(value: Manifest, path: string, unread: Set<string>): Manifest {
  if (value === null || typeof value !== 'object') return value;
  const at = (key: string | symbol) => `${path}/${String(key)}`;
  for (const key of Object.keys(value)) unread.add(at(key));
  const members = new Map<string | symbol, Manifest>();
  return new Proxy(value, {
    get(target, key) {
      unread.delete(at(key));
      if (!members.has(key)) members.set(key, watch(target[key], at(key), unread));
      return members.get(key);
    },
    ownKeys(target) {
      for (const key of Object.keys(target)) unread.delete(at(key)); // a map of any keys
      return Reflect.ownKeys(target);
    },
  });
}

// --- Pod Security ---------------------------------------------------------------

const VOLUMES = [
  'configMap',
  'csi',
  'downwardAPI',
  'emptyDir',
  'ephemeral',
  'persistentVolumeClaim',
  'projected',
  'secret',
];

/** What Pod Security `restricted` refuses, and what this house wants beyond it. */
function podFaults({ spec }: Manifest, anyUser = false): string[] {
  const faults: string[] = [];
  const want = (holds: unknown, fault: string) => holds || faults.push(fault);
  for (const field of ['hostNetwork', 'hostPID', 'hostIPC']) want(!spec[field], field);
  want(spec.automountServiceAccountToken === false, 'automountServiceAccountToken');
  want(!spec.securityContext?.sysctls, 'sysctls');
  for (const { name, ...volume } of spec.volumes ?? []) {
    want(
      Object.keys(volume).every((type) => VOLUMES.includes(type)),
      `volume ${name}`,
    );
  }
  for (const container of containersOf(spec)) {
    const context = { ...spec.securityContext, ...container.securityContext };
    const fault = (what: string) => `${container.name}: ${what}`;
    want(context.runAsNonRoot === true, fault('runAsNonRoot'));
    want(anyUser ? context.runAsUser === undefined : context.runAsUser > 0, fault('runAsUser'));
    want(context.seccompProfile?.type === 'RuntimeDefault', fault('seccompProfile'));
    want(context.allowPrivilegeEscalation === false, fault('allowPrivilegeEscalation'));
    want(!context.privileged && !context.procMount, fault('privileged'));
    want(context.readOnlyRootFilesystem === true, fault('readOnlyRootFilesystem'));
    want(context.capabilities?.drop?.includes('ALL'), fault('capabilities.drop'));
    want(!context.capabilities?.add, fault('capabilities.add'));
    want(
      (container.ports ?? []).every(({ hostPort }: Manifest) => !hostPort),
      fault('hostPort'),
    );
    for (const kind of ['requests', 'limits']) {
      for (const what of ['cpu', 'memory']) {
        want(container.resources?.[kind]?.[what], fault(`resources.${kind}.${what}`));
      }
    }
  }
  return faults;
}

// --- Names that have to meet ----------------------------------------------------

/** The keys of the Secrets that others make. */
const SECRETS: Record<string, string[]> = {
  passengers: ['JWT_SECRET', 'PGPASSWORD'], // credentials.ts
  'passengers-db-app': ['username', 'password', 'dbname', 'host', 'port', 'uri'], // CloudNativePG
};

function matches(labels: Record<string, string> = {}, selector: Record<string, string> = {}) {
  return Object.entries(selector).every(([name, value]) => labels[name] === value);
}

function has(manifests: Manifest[], kind: string, name: string): boolean {
  return manifests.some((it) => it.kind === kind && it.metadata.name === name);
}

/** The pod templates that a selector means. */
function selected(manifests: Manifest[], selector: Record<string, string>): Manifest[] {
  const pods = templates(manifests).map(({ template }) => template);
  return pods.filter(({ metadata }) => matches(metadata.labels, selector));
}

function isPort({ spec }: Manifest, port: string | number): boolean {
  const ports = containersOf(spec).flatMap((container) => container.ports ?? []);
  return ports.some(({ name, containerPort }) => port === name || port === containerPort);
}

/** By kind: whether the names in it lead somewhere. */
const MEETS: Record<string, (it: Manifest, manifests: Manifest[]) => boolean> = {
  Service: ({ spec }, manifests) => {
    const pods = selected(manifests, spec.selector);
    const ports: Manifest[] = spec.ports;
    return pods.length === 1 && ports.every(({ targetPort }) => isPort(pods[0], targetPort));
  },
  Deployment: ({ spec }) => matches(spec.template.metadata.labels, spec.selector.matchLabels),
  StatefulSet: ({ spec }, manifests) =>
    matches(spec.template.metadata.labels, spec.selector.matchLabels) &&
    has(manifests, 'Service', spec.serviceName),
  PodDisruptionBudget: ({ spec }, manifests) =>
    selected(manifests, spec.selector.matchLabels).length === 1,
  HorizontalPodAutoscaler: ({ spec }, manifests) =>
    has(manifests, spec.scaleTargetRef.kind, spec.scaleTargetRef.name),
  ServiceMonitor: ({ spec }, manifests) => {
    const services = manifests.filter(
      ({ kind, metadata }) =>
        kind === 'Service' && matches(metadata.labels, spec.selector.matchLabels),
    );
    const ports: Manifest[] = services.flatMap((it) => it.spec.ports);
    return services.length === 1 && ports.some(({ name }) => name === spec.endpoints[0].port);
  },
  Ingress: ({ spec }, manifests) => {
    const { name, port } = spec.rules[0].http.paths[0].backend.service;
    const service = manifests.find((it) => it.kind === 'Service' && it.metadata.name === name);
    return service?.spec.ports.some((it: Manifest) => it.name === port.name) === true;
  },
  RoleBinding: ({ metadata, roleRef, subjects }, manifests) =>
    has(manifests, roleRef.kind, roleRef.name) &&
    subjects.every(
      ({ kind, name, namespace }: Manifest) =>
        has(manifests, kind, name) && namespace === metadata.namespace,
    ),
};

function nameFaults(manifests: Manifest[]): string[] {
  const astray = manifests.filter((it) => MEETS[it.kind]?.(it, manifests) === false);
  const faults = astray.map(({ kind, metadata }) => `${kind} ${metadata.name} leads nowhere`);
  return [...faults, ...selected(manifests, {}).flatMap((pod) => referenceFaults(pod, manifests))];
}

/** The volumes, objects, ports and keys of Secrets that a pod names. */
function referenceFaults(pod: Manifest, manifests: Manifest[]): string[] {
  const faults: string[] = [];
  const want = (holds: unknown, fault: string) => holds || faults.push(fault);
  const { volumes, serviceAccountName: account } = pod.spec;
  const claims: Manifest[] = manifests.flatMap((it) => it.spec?.volumeClaimTemplates ?? []);
  const names = [...volumes, ...claims.map(({ metadata }) => metadata)].map(({ name }) => name);
  want(!account || has(manifests, 'ServiceAccount', account), `no ServiceAccount ${account}`);
  for (const { configMap } of volumes) {
    const name = configMap?.name;
    want(!name || has(manifests, 'ConfigMap', name), `no ConfigMap ${name}`);
  }
  for (const container of containersOf(pod.spec)) {
    for (const { name } of container.volumeMounts) want(names.includes(name), `no volume ${name}`);
    for (const kind of ['startupProbe', 'readinessProbe', 'livenessProbe']) {
      const port = container[kind]?.httpGet?.port;
      want(!port || isPort(pod, port), `${container.name} ${kind}: no port ${port}`);
    }
    for (const { name, value, valueFrom } of container.env ?? []) {
      want((value === undefined) !== (valueFrom === undefined), `${name}: value and valueFrom`);
      const key = valueFrom?.secretKeyRef;
      const known = !key || key.optional || SECRETS[key.name]?.includes(key.key);
      want(known, `${name}: no key ${key?.key} in the Secret ${key?.name}`);
    }
  }
  return faults;
}

// --- All of it ------------------------------------------------------------------

describe('every rendering', { skip }, () => {
  for (const name of [...Object.keys(VARIANTS), ...OVERLAYS]) {
    test(`${name}: valid by the schemas of Kubernetes and of the operators`, async () => {
      for (const manifest of all(name)) {
        const { kind, metadata } = manifest;
        assert.deepEqual(await schemaFaults(manifest), [], `${kind} ${metadata.name}`);
      }
    });

    test(`${name}: every container meets Pod Security restricted, with requests and limits`, () => {
      const anyUser = all(name).some(({ kind }) => kind === 'BuildConfig');
      for (const { name: called, template } of templates(all(name))) {
        assert.deepEqual(podFaults(template, anyUser), [], called);
      }
    });

    test(`${name}: selectors, ports, volumes, accounts and keys of Secrets meet`, () => {
      assert.deepEqual(nameFaults(all(name)), []);
    });

    test(`${name}: no Secret, no Job, no latest, one namespace that comes first`, () => {
      const kinds = all(name).map(({ kind }) => kind);
      for (const kind of ['Secret', 'Job', 'CronJob', 'Pod'])
        assert.ok(!kinds.includes(kind), kind);
      const [namespace, ...others] = all(name);
      assert.equal(namespace.kind, 'Namespace');
      assert.equal(namespace.metadata.labels['pod-security.kubernetes.io/enforce'], 'restricted');
      for (const { metadata } of others) {
        assert.equal(metadata.namespace, namespace.metadata.name, metadata.name);
      }
      const images = templates(all(name)).flatMap(({ template }) =>
        containersOf(template.spec).map(({ image }) => image),
      );
      for (const image of images) assert.match(image, /:(?!latest$)[\w.-]+$|@sha256:/);
    });

    test(`${name}: no field has a value that looks like a credential`, () => {
      const env = templates(all(name)).flatMap(({ template }) =>
        containersOf(template.spec).flatMap(({ env = [] }) => env),
      );
      for (const { name: called, value } of env) {
        assert.ok(
          !/PASSWORD|SECRET|TOKEN|DATABASE_URL/.test(called) || value === undefined,
          called,
        );
      }
    });
  }

  test('a kind that nobody has a schema for is a fault', async () => {
    const [fault] = await schemaFaults({ apiVersion: 'example.com/v1', kind: 'Thing' });
    assert.match(fault ?? '', /no schema/);
  });

  const spoiled: [string, (deployment: Manifest) => void, RegExp][] = [
    ['an unknown field', ({ spec }) => Object.assign(spec, { replicass: 2 }), /\/spec\/replicass/],
    [
      'an unknown field of a container',
      ({ spec }) => Object.assign(spec.template.spec.containers[0], { imag: '' }),
      /containers\/0\/imag/,
    ],
    ['a text for a number', ({ spec }) => Object.assign(spec, { replicas: '2' }), /replicas/],
    ['a missing field', ({ spec }) => delete spec.selector, /selector/],
    [
      'a word that is none',
      ({ spec }) => Object.assign(spec.strategy, { type: 'Rolling' }),
      /strategy/,
    ],
  ];
  for (const [name, spoil, expected] of spoiled) {
    test(`the schemas refuse ${name}`, async () => {
      const deployment = structuredClone(one('install', 'Deployment'));
      spoil(deployment);
      assert.match((await schemaFaults(deployment)).join(), expected);
    });
  }

  const unsafe: [string, (spec: Manifest) => unknown][] = [
    ['hostNetwork', (spec) => Object.assign(spec, { hostNetwork: true })],
    ['automountServiceAccountToken', (spec) => delete spec.automountServiceAccountToken],
    ['volume tmp', (spec) => Object.assign(spec.volumes[1], { name: 'tmp', hostPath: {} })],
    [
      'passengers: runAsNonRoot',
      (spec) => Object.assign(spec.containers[0].securityContext, { runAsNonRoot: false }),
    ],
    [
      'passengers: runAsUser',
      (spec) => Object.assign(spec.containers[0].securityContext, { runAsUser: 0 }),
    ],
    [
      'credentials: seccompProfile',
      (spec) =>
        Object.assign(spec.initContainers[0].securityContext, {
          seccompProfile: { type: 'Unconfined' },
        }),
    ],
    [
      'credentials: allowPrivilegeEscalation',
      (spec) => delete spec.initContainers[0].securityContext.allowPrivilegeEscalation,
    ],
    [
      'credentials: readOnlyRootFilesystem',
      (spec) => delete spec.initContainers[0].securityContext.readOnlyRootFilesystem,
    ],
    [
      'passengers: capabilities.drop',
      (spec) => delete spec.containers[0].securityContext.capabilities,
    ],
    [
      'passengers: resources.limits.memory',
      (spec) => delete spec.containers[0].resources.limits.memory,
    ],
  ];
  for (const [fault, spoil] of unsafe) {
    test(`the judge of pods sees ${fault}`, () => {
      const { template } = structuredClone(one('install', 'Deployment').spec);
      spoil(template.spec);
      assert.ok(podFaults(template).includes(fault), podFaults(template).join());
    });
  }

  const apart: [string, (manifests: Manifest[]) => unknown, RegExp][] = [
    [
      'a Service that selects nothing',
      (all) => Object.assign(all.find(({ kind }) => kind === 'Service').spec.selector, { x: 'y' }),
      /Service passengers leads nowhere/,
    ],
    [
      'a port that is not there',
      (all) =>
        Object.assign(all.find(({ kind }) => kind === 'Service').spec.ports[0], {
          targetPort: 'htp',
        }),
      /Service passengers leads nowhere/,
    ],
    [
      'a key that nobody makes',
      (all) =>
        all
          .find(({ kind }) => kind === 'StatefulSet')
          .spec.template.spec.containers[0].env.push({
            name: 'X',
            valueFrom: { secretKeyRef: { name: 'passengers', key: 'PASS' } },
          }),
      /no key PASS/,
    ],
    [
      'a subject of another namespace',
      (all) =>
        Object.assign(all.find(({ kind }) => kind === 'RoleBinding').subjects[0], {
          namespace: 'other',
        }),
      /RoleBinding/,
    ],
  ];
  for (const [name, spoil, expected] of apart) {
    test(`the judge of names sees ${name}`, () => {
      const manifests = structuredClone(all('install'));
      spoil(manifests);
      assert.match(nameFaults(manifests).join(), expected);
    });
  }
});

describe('the service', { skip }, () => {
  const pod = () => one('install', 'Deployment').spec.template.spec;
  const container = () => pod().containers[0];

  test('two replicas, of which no update takes one away', () => {
    const { replicas, strategy } = one('install', 'Deployment').spec;
    assert.equal(replicas, 2);
    assert.deepEqual(strategy.rollingUpdate, { maxUnavailable: 0, maxSurge: 1 });
  });

  test('probes go through nginx on 8081; the Service leads to 8080 alone', () => {
    const { startupProbe, readinessProbe, livenessProbe, ports } = container();
    const paths = [startupProbe, readinessProbe, livenessProbe].map(({ httpGet }) => httpGet);
    assert.deepEqual(paths, [
      { path: '/healthz', port: 'ops' },
      { path: '/readyz', port: 'ops' },
      { path: '/healthz', port: 'ops' },
    ]);
    assert.deepEqual(ports, [
      { name: 'http', containerPort: 8080 },
      { name: 'ops', containerPort: 8081 },
    ]);
    const { ports: served } = one('install', 'Service').spec;
    assert.deepEqual(served, [{ name: 'http', port: 80, targetPort: 'http' }]);
  });

  const noImage = !existsSync(SUPERVISORD) && 'there is no supervisord.conf yet';
  test('preStop and every stopwaitsecs fit into the grace period, and the comment has the sum', {
    skip: noImage,
  }, () => {
    const waits = [...readFileSync(SUPERVISORD, 'utf8').matchAll(/^stopwaitsecs=(\d+)/gm)];
    const seconds = waits.map(([, wait]) => Number(wait));
    const sum = seconds.reduce(
      (all, wait) => all + wait,
      container().lifecycle.preStop.sleep.seconds + 3,
    );
    assert.ok(seconds.length >= 2 && pod().terminationGracePeriodSeconds >= sum, String(sum));
    const text = readFileSync(join(HERE, 'base/deployment.yaml'), 'utf8');
    assert.match(text, new RegExp(`# .*= ${sum}\n +terminationGracePeriodSeconds`));
  });

  test('reads are open, writes need a token; a missing Secret makes the kubelet wait', () => {
    const env = Object.fromEntries(
      container().env.map(({ name, ...rest }: Manifest) => [name, rest]),
    );
    assert.equal(env.AUTH.value, 'write');
    assert.deepEqual(env.JWT_SECRET.valueFrom.secretKeyRef, {
      name: 'passengers',
      key: 'JWT_SECRET',
    });
    assert.equal(env.PGPASSWORD.valueFrom.secretKeyRef.optional, false);
    assert.equal(env.PGHOST.value, 'postgres');
  });

  test('no volume is made of the Secret that its own initContainer creates', () => {
    assert.deepEqual(
      pod().volumes.filter(({ secret }: Manifest) => secret),
      [],
    );
  });
});

describe('credentials', { skip }, () => {
  test('the token is mounted in the initContainer alone, and lasts ten minutes', () => {
    const { volumes, initContainers, containers } = one('install', 'Deployment').spec.template.spec;
    const { projected } = volumes.find(({ name }: Manifest) => name === 'api');
    assert.deepEqual(projected.sources[0], {
      serviceAccountToken: { path: 'token', expirationSeconds: 600 },
    });
    const mounting = [...initContainers, ...containers].filter(({ volumeMounts }) =>
      volumeMounts.some(({ name }: Manifest) => name === 'api'),
    );
    assert.deepEqual(
      mounting.map(({ name }) => name),
      ['credentials'],
    );
  });

  test('the role may create secrets and nothing else', () => {
    const { rules } = one('install', 'Role', 'credentials');
    assert.deepEqual(rules, [{ apiGroups: [''], resources: ['secrets'], verbs: ['create'] }]);
  });

  test('the initContainer runs the image of the service, and a file that is here', () => {
    const { initContainers, containers } = one('install', 'Deployment').spec.template.spec;
    assert.equal(initContainers[0].image, containers[0].image);
    assert.deepEqual(initContainers[0].command, ['node', '/app/credentials.ts']);
    assert.ok(existsSync(join(HERE, 'components/credentials/credentials.ts')));
  });

  test('the keys that it makes are those that are read', () => {
    const text = readFileSync(join(HERE, 'components/credentials/credentials.ts'), 'utf8');
    const [, made = ''] = /stringData: \{(.*)\}/.exec(text) ?? [];
    assert.deepEqual(
      [...made.matchAll(/(\w+): random/g)].map(([, key]) => key),
      SECRETS.passengers,
    );
  });
});

describe('components', { skip }, () => {
  test('each begins with one line that says what it adds and why', () => {
    for (const name of COMPONENTS) {
      const lines = readFileSync(
        join(HERE, 'components', name, 'kustomization.yaml'),
        'utf8',
      ).split('\n');
      assert.match(lines[0] ?? '', /^# \S.{40,200}\.$/, name);
      assert.match(lines[1] ?? '', /^apiVersion: kustomize\.config\.k8s\.io\/v1alpha1$/, name);
    }
  });

  test('each changes something, or it would be applied to nothing in silence', () => {
    for (const name of COMPONENTS) {
      const without = JSON.stringify(all('base'));
      assert.notEqual(JSON.stringify(all(`base + ${name}`)), without, name);
    }
  });

  test('no patch is one of JSON 6902, which matches nothing in silence', () => {
    for (const name of COMPONENTS) {
      const { patches = [] } = parse(
        readFileSync(join(HERE, 'components', name, 'kustomization.yaml'), 'utf8'),
      );
      for (const { path } of patches) {
        assert.ok(parse(readFileSync(join(HERE, 'components', name, path), 'utf8')).kind, path);
      }
    }
  });

  test('postgres: stock image, a volume where that of 18 wants it, no part of a release', () => {
    const { template, volumeClaimTemplates } = one('install', 'StatefulSet', 'postgres').spec;
    const [container] = template.spec.containers;
    assert.equal(container.image, 'postgres:18');
    const { mountPath } = container.volumeMounts.find(({ name }: Manifest) => name === 'data');
    assert.equal(mountPath, '/var/lib/postgresql');
    assert.equal(volumeClaimTemplates[0].metadata.name, 'data');
    assert.equal(volumeClaimTemplates[0].spec.storageClassName, undefined);
  });

  test("autoscaling: the replicas are the autoscaler's, and all their connections fit", () => {
    const { spec } = one('production', 'Deployment');
    assert.equal(spec.replicas, undefined);
    const env = Object.fromEntries(
      spec.template.spec.containers[0].env.map(({ name, value }: Manifest) => [
        name,
        Number(value),
      ]),
    );
    const { minReplicas, maxReplicas } = one('production', 'HorizontalPodAutoscaler').spec;
    assert.equal(minReplicas, 2);
    const most = maxReplicas + spec.strategy.rollingUpdate.maxSurge;
    const connections = most * env.WEB_CONCURRENCY * (env.POOL_SIZE + 4);
    assert.ok(connections <= 97, String(connections));
  });

  test('cloudnative-pg: through a pooler, without prepared statements, and no other PostgreSQL', () => {
    const name = 'all but postgres';
    const { env } = one(name, 'Deployment').spec.template.spec.containers[0];
    const values = Object.fromEntries(env.map(({ name, value }: Manifest) => [name, value]));
    assert.deepEqual([values.PGHOST, values.DB_PREPARE], ['passengers-db-pooler', 'false']);
    assert.equal(one(name, 'Pooler', values.PGHOST).spec.cluster.name, 'passengers-db');
    assert.equal(one(name, 'Cluster', 'passengers-db').spec.instances, 3);
    assert.ok(!all(name).some(({ kind }) => kind === 'StatefulSet'));
  });

  test('network-policy: all is denied but what is listed', () => {
    const name = 'base + network-policy';
    assert.deepEqual(one(name, 'NetworkPolicy', 'default').spec, {
      podSelector: {},
      policyTypes: ['Ingress', 'Egress'],
    });
    const { ingress, egress } = one(name, 'NetworkPolicy').spec;
    const monitoring = {
      namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'monitoring' } },
    };
    assert.deepEqual(ingress, [
      { ports: [{ port: 8080 }] },
      { ports: [{ port: 8081 }], from: [monitoring] },
    ]);
    const open = egress.map(({ ports }: Manifest) => ports.map(({ port }: Manifest) => port));
    assert.deepEqual(open, [[5432], [53, 53, 5353, 5353], [443, 6443]]);
    const database = one(name, 'NetworkPolicy', 'postgres').spec;
    const service = { podSelector: { matchLabels: { 'app.kubernetes.io/name': 'passengers' } } };
    assert.deepEqual(database.ingress, [{ ports: [{ port: 5432 }], from: [service] }]);
    assert.equal(database.egress, undefined);
  });

  test('gateway: a prefix that the service never sees', () => {
    const { parentRefs, rules } = one('base + gateway', 'HTTPRoute').spec;
    assert.deepEqual(parentRefs, [{ name: 'gateway', namespace: 'gateway' }]);
    assert.deepEqual(rules, [
      {
        matches: [{ path: { type: 'PathPrefix', value: '/titanic' } }],
        filters: [
          {
            type: 'URLRewrite',
            urlRewrite: { path: { type: 'ReplacePrefixMatch', replacePrefixMatch: '/' } },
          },
        ],
        backendRefs: [{ name: 'passengers', port: 80 }],
      },
    ]);
  });

  test('openshift: a Route, a build from source, and no user id of our own', () => {
    const name = 'base + openshift';
    const { to, port, tls } = one(name, 'Route').spec;
    assert.deepEqual([to, port], [{ kind: 'Service', name: 'passengers' }, { targetPort: 'http' }]);
    assert.deepEqual(tls, { termination: 'edge', insecureEdgeTerminationPolicy: 'Redirect' });
    const { strategy, output } = one(name, 'BuildConfig').spec;
    assert.equal(strategy.type, 'Source');
    assert.deepEqual(strategy.sourceStrategy.from, {
      kind: 'ImageStreamTag',
      namespace: 'openshift',
      name: 'nodejs:22-ubi9',
    });
    assert.equal(output.to.name.split(':')[0], one(name, 'ImageStream').metadata.name);
    for (const { template } of templates(all(name))) {
      const { runAsUser, runAsGroup, fsGroup } = template.spec.securityContext;
      assert.deepEqual([runAsUser, runAsGroup, fsGroup], [undefined, undefined, undefined]);
    }
  });
});

describe('monitoring', { skip }, () => {
  /** Of Prometheus itself, and of kube-state-metrics. */
  const ELSEWHERE = [
    'up',
    'kube_deployment_status_replicas_ready',
    'kube_deployment_spec_replicas',
  ];
  let exported: string[] = [];

  before(async () => {
    const database = await startDatabase();
    const service = await startService({ DATABASE_URL: database.url });
    await service.get('/passengers?limit=1');
    const { text } = await service.get('/metrics');
    exported = text.split('\n').flatMap((line) => /^[a-z]\w*/.exec(line) ?? []);
    await service.stop();
    await database.stop();
  });

  function namesIn(query: string): string[] {
    const bare = query
      .replace(/\{[^}]*\}|\[[^\]]*\]|"[^"]*"/g, ' ')
      .replace(/\b(by|without|on|ignoring)\s*\([^)]*\)/g, ' ')
      .replace(/^label_values\((.*),.*\)$/, '$1');
    return [...bare.matchAll(/\b[a-z_][a-z0-9_]*\b(?!\s*\()/g)].map(([name]) => name);
  }

  test('every query of the dashboard names a metric that the service exports', () => {
    const { data } = one('base + monitoring', 'ConfigMap', 'passengers-dashboard');
    const { panels, templating } = JSON.parse(data['passengers.json']);
    const queries: string[] = [
      ...panels.flatMap(({ targets }: Manifest) => targets.map(({ expr }: Manifest) => expr)),
      ...templating.list
        .filter(({ type }: Manifest) => type === 'query')
        .map(({ query }: Manifest) => query),
    ];
    assert.ok(queries.length > 10);
    for (const query of queries) {
      const names = namesIn(query);
      assert.ok(names.length > 0, query);
      for (const name of names) assert.ok(exported.includes(name), `${name} in ${query}`);
    }
  });

  test('every alert names metrics that exist and says what to do', () => {
    const { rules } = one('base + monitoring', 'PrometheusRule').spec.groups[0];
    assert.deepEqual(
      rules.map(({ alert }: Manifest) => alert),
      [
        'PassengersErrors',
        'PassengersSlow',
        'PassengersNotReady',
        'PassengersGone',
        'PassengersPoolSaturated',
        'PassengersRestarts',
      ],
    );
    for (const { alert, expr, labels, annotations } of rules) {
      const names = namesIn(expr);
      assert.ok(names.length > 0, alert);
      for (const name of names)
        assert.ok([...exported, ...ELSEWHERE].includes(name), `${alert}: ${name}`);
      assert.match(labels.severity, /^(critical|warning)$/, alert);
      assert.ok(annotations.summary.length > 20 && annotations.action.length > 80, alert);
    }
  });

  test('the labels that queries select by are those of the service', () => {
    const { metadata } = one('base + monitoring', 'Service', 'passengers-metrics');
    const { data } = one('base + monitoring', 'ConfigMap', 'passengers-dashboard');
    const rules = JSON.stringify(one('base + monitoring', 'PrometheusRule'));
    for (const text of [data['passengers.json'], rules]) {
      const jobs = [...text.matchAll(/job=\\+"([^\\"]+)/g)].map(([, job]) => job);
      assert.deepEqual([...new Set(jobs)], [metadata.name]);
    }
  });
});

function kustomizationOf(overlay: string): string {
  return readFileSync(join(HERE, 'overlays', overlay, 'kustomization.yaml'), 'utf8');
}

describe('overlays', { skip }, () => {
  test('each is one file, a list; the image is named alike in all', () => {
    const named = OVERLAYS.map((name) => {
      assert.deepEqual(readdirSync(join(HERE, 'overlays', name)), ['kustomization.yaml']);
      const { images, labels, ...rest } = parse(kustomizationOf(name)); // a release adds labels
      for (const one of labels ?? []) assert.deepEqual(Object.keys(one), ['pairs'], name);
      assert.deepEqual(Object.keys(rest), [
        'apiVersion',
        'kind',
        'namespace',
        'resources',
        'components',
      ]);
      assert.deepEqual(rest.resources, ['../../base']);
      return images.map(({ name, newName }: Manifest) => ({ name, newName }));
    });
    for (const images of named) assert.deepEqual(images, named[0]);
    assert.equal(named[0]?.[0]?.name, 'passengers');
  });

  test('a tag is a text to kustomize, whose YAML 1.1 reads 1.10 as a number', () => {
    for (const name of OVERLAYS) {
      const [{ newTag }] = parse(kustomizationOf(name), { version: '1.1' }).images;
      assert.equal(typeof newTag, 'string', name);
    }
  });

  test('test does not share a namespace with what users see', () => {
    assert.equal(one('test', 'Deployment').metadata.namespace, 'passengers-test');
    for (const name of ['install', 'production']) {
      assert.equal(one(name, 'Deployment').metadata.namespace, 'passengers', name);
    }
  });

  test('the matrix in README.md is that of the overlays', () => {
    const rows = readFileSync(join(HERE, 'README.md'), 'utf8')
      .split('\n')
      .filter((line) => line.startsWith('|'));
    const cells = rows.map((row) =>
      row
        .split('|')
        .slice(1, -1)
        .map((cell) => cell.trim()),
    );
    const [head = [], , ...body] = cells;
    assert.deepEqual(
      body.map(([name]) => name?.replaceAll('`', '')).sort(),
      [...COMPONENTS].sort(),
    );
    for (const overlay of OVERLAYS) {
      const column = head.indexOf(`\`${overlay}\``);
      assert.ok(column > 0, overlay);
      const marked = body
        .filter((cells) => cells[column] === 'x')
        .map(([name]) => name?.replaceAll('`', ''));
      const { components } = parse(kustomizationOf(overlay));
      const listed = components.map((path: string) => path.split('/').at(-1));
      assert.deepEqual(marked.sort(), listed.sort(), overlay);
    }
  });
});

describe('install/passengers.yaml', { skip }, () => {
  test('is overlays/install, rendered, byte for byte', async () => {
    const published = await readFile(INSTALLED, 'utf8');
    assert.equal(published, render(join(HERE, 'overlays/install')), 'run "npm run render"');
  });

  test('is a whole system: namespace, credentials, PostgreSQL, two replicas, a NodePort', () => {
    const kinds = all('install').map(({ kind, metadata }) =>
      `${kind} ${metadata.name}`.replace(/-\w{10}$/, ''),
    );
    assert.deepEqual(kinds, [
      'Namespace passengers',
      'ServiceAccount passengers',
      'Role credentials',
      'RoleBinding credentials',
      'ConfigMap postgres-start',
      'Service passengers',
      'Service postgres',
      'Deployment passengers',
      'StatefulSet postgres',
    ]);
    assert.equal(one('install', 'Service').spec.type, 'NodePort');
  });
});

describe('README.md', () => {
  const readme = readFileSync(join(HERE, '../README.md'), 'utf8');
  const [, section = ''] = /^## On Kubernetes\n([\s\S]*?)^## /m.exec(readme) ?? [];

  test('has one section on Kubernetes, of at most 40 lines, whose paths exist', () => {
    const lines = section.trim().split('\n').length;
    assert.ok(lines > 10 && lines <= 40, String(lines));
    const paths = [...section.matchAll(/\b(?:install|kustomize)\/[\w./-]*\w/g)].map(
      ([path]) => path,
    );
    for (const path of paths.filter((path) => !path.includes('overlays/mine'))) {
      assert.ok(existsSync(join(HERE, '..', path)), path);
    }
  });

  test('its way to an ingress leads to one', { skip }, async () => {
    assert.match(section, /sed -i s\/nodeport\/ingress\/ kustomize\/overlays\/mine/);
    const copy = await mkdtemp(join(work, 'mine-'));
    for (const part of ['base', 'components', 'overlays']) {
      await cp(join(HERE, part), join(copy, part), { recursive: true });
    }
    const mine = kustomizationOf('install').replaceAll('nodeport', 'ingress');
    await writeFile(join(copy, 'overlays/install/kustomization.yaml'), mine);
    const kinds = read(render(join(copy, 'overlays/install'))).map(({ kind }) => kind);
    assert.ok(kinds.includes('Ingress'));
  });
});

describe('the next release, applied over this one', { skip }, () => {
  /** Every path at which two values differ. */
  function differences(before: Manifest, after: Manifest, path = ''): string[] {
    if (typeof before !== 'object' || typeof after !== 'object' || !before || !after) {
      return Object.is(before, after) ? [] : [path];
    }
    const keys = [...new Set([...Object.keys(before), ...Object.keys(after)])];
    return keys.flatMap((key) => differences(before[key], after[key], `${path}/${key}`));
  }

  const releases = [
    { newTag: 'main-0123abc' },
    { newTag: '1.10' },
    { newTag: '2024e5' },
    { newTag: 'main-0123abc', digest: `sha256:${'a'.repeat(64)}` },
  ];
  for (const name of OVERLAYS) {
    for (const release of releases) {
      const image = Object.values(release).join('@');
      test(`${name} at ${image}: images and version labels differ, nothing else`, async () => {
        const copy = await mkdtemp(join(work, 'copy-'));
        for (const part of ['base', 'components', 'overlays']) {
          await cp(join(HERE, part), join(copy, part), { recursive: true });
        }
        const kustomization = parse(kustomizationOf(name));
        const [{ name: called, newName }] = kustomization.images;
        kustomization.images = [{ name: called, newName, ...release }];
        kustomization.labels = [{ pairs: { 'app.kubernetes.io/version': '0.0.0-test' } }];
        const directory = join(copy, 'overlays', name);
        await writeFile(join(directory, 'kustomization.yaml'), JSON.stringify(kustomization));
        const next = read(render(directory));
        const paths = differences(all(name), next);
        const released = paths.filter((path) => path.endsWith('/image'));
        const others = paths.filter((path) => !path.endsWith('/image'));
        const index = next.findIndex(({ kind }) => kind === 'Deployment');
        assert.deepEqual(
          released.sort(),
          ['containers', 'initContainers'].map(
            (of) => `/${index}/spec/template/spec/${of}/0/image`,
          ),
        );
        const label = /^\/\d+\/metadata\/labels(\/app\.kubernetes\.io\/version)?$/;
        for (const path of others) assert.match(path, label);
        const { spec } = next[index].spec.template;
        assert.equal(spec.containers[0].image, `${newName}:${image}`);
      });
    }
  }

  test('a digest takes the place of a tag', async () => {
    const directory = await mkdtemp(join(work, 'digest-'));
    const digest = `sha256:${'a'.repeat(64)}`;
    const images = [{ name: 'passengers', newName: 'example.com/passengers', digest }];
    const resources = [relative(directory, join(HERE, 'base'))];
    await writeFile(join(directory, 'kustomization.yaml'), JSON.stringify({ resources, images }));
    const deployment = read(render(directory)).find(({ kind }) => kind === 'Deployment');
    const { image } = deployment.spec.template.spec.containers[0];
    assert.equal(image, `example.com/passengers@${digest}`);
  });
});
