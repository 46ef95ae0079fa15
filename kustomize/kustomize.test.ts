/**
 * Renders base, components and overlays, and checks them without a cluster: the rules of rules.ts,
 * facts by path, documentation, and what the next release changes. Needs `kubectl` or `kustomize`.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { BlockList } from 'node:net';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { parse, parseAllDocuments } from 'yaml';
import {
  at,
  contentFaults,
  type Manifest,
  podFaults,
  referenceFaults,
  SECRETS,
  schemaFaults,
  storedFaults,
} from './rules.ts';

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

/** Renders a kustomization whose paths are those of an overlay. */
function renderText(kustomization: Manifest): string {
  const directory = mkdtempSync(join(work, 'overlay-'));
  const moved = (path: string) => relative(directory, join(HERE, 'overlays/any', path));
  const { resources = [], components = [], ...rest } = kustomization;
  const there = { resources: resources.map(moved), components: components.map(moved), ...rest };
  writeFileSync(join(directory, 'kustomization.yaml'), JSON.stringify(there));
  return render(directory);
}

function renderOverlay(kustomization: Manifest): Manifest[] {
  return parseAllDocuments(renderText(kustomization)).map((document) => document.toJS());
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
const CLAIM = 'StatefulSet postgres/spec/volumeClaimTemplates/0';

/** Rule, the value that is changed, the change, and the fault; `undefined` deletes. */
const BROKEN: [(typeof RULES)[keyof typeof RULES], string, object, RegExp][] = [
  [schemaFaults, 'Deployment passengers', { apiVersion: 'x/v1' }, /no schema/],
  [schemaFaults, MAIN, { imag: '' }, /containers\/0\/imag/],
  [podFaults, `${POD}/volumes/tmp`, { hostPath: {} }, /volume tmp/],
  [podFaults, `${MAIN}/resources/limits`, { cpu: '2' }, /passengers limits/],
  [podFaults, `${INIT}/securityContext`, { readOnlyRootFilesystem: undefined }, /readOnlyRoot/],
  [referenceFaults, 'Service passengers/spec/selector', { x: 'y' }, /passengers selects 0/],
  [referenceFaults, 'Service passengers/spec/ports/0', { targetPort: 'htp' }, /port htp/],
  [referenceFaults, `${MAIN}/env/JWT_SECRET/valueFrom/secretKeyRef`, { key: 'PASS' }, /PASS/],
  [storedFaults, CLAIM, { status: undefined }, /status/],
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
    [`${DEPLOYMENT}/strategy/rollingUpdate/maxUnavailable`]: 0,
    [`${MAIN}/startupProbe/httpGet`]: { path: '/healthz', port: 'ops' },
    [`${MAIN}/readinessProbe/httpGet`]: { path: '/readyz', port: 'ops' },
    [`${MAIN}/livenessProbe/httpGet`]: { path: '/healthz', port: 'ops' },
    [`${MAIN}/env/AUTH/value`]: 'write',
  },
  'base + nodeport': {
    'Service passengers-nodeport/spec/externalTrafficPolicy': 'Local',
    [`${MAIN}/volumeMounts/1`]: undefined, // no list of trusted peers
  },
  production: {
    [`${DEPLOYMENT}/replicas`]: undefined,
    [`${MAIN}/volumeMounts/trusted-ingress/mountPath`]: `${MOUNT}/ingress.conf`,
  },
  'all but postgres': {
    [`${MAIN}/env/PGHOST/value`]: 'passengers-db-pooler',
    [`${MAIN}/env/DB_PREPARE/value`]: 'false',
  },
  'base + gateway': {
    [`${MAIN}/env/BASE_PATH/value`]: '/titanic',
    [`${MAIN}/volumeMounts/trusted-gateway/mountPath`]: `${MOUNT}/gateway.conf`,
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

  const PEERS: [string, string, boolean][] = [
    ['ingress', '10.1.2.3', true],
    ['ingress', '35.191.0.1', true],
    ['ingress', '203.0.113.7', false],
    ['gateway', '192.168.1.1', true],
  ];
  for (const [name, peer, trusted] of PEERS) {
    test(`${name}: nginx ${trusted ? 'believes' : 'ignores'} X-Forwarded-For of ${peer}`, () => {
      const peers = new BlockList();
      for (const line of text(`components/${name}/${name}.conf`).trim().split('\n')) {
        const [, comment, network = '', prefix = '32'] =
          /^(?:(#) .*|set_real_ip_from ([\d.]+)(?:\/(\d+))?;)$/.exec(line) ?? assert.fail(line);
        if (!comment) peers.addSubnet(network, Number(prefix));
      }
      assert.equal(peers.check(peer), trusted);
    });
  }

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
      assert.match(images[0].newName, /^[\w.-]+\/.*\/passengers$/);
      for (const { pairs } of labels) {
        assert.match(Object.keys(pairs).join(), /^app.kubernetes.io\/(instance|version)$/);
      }
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

  test('test and production share neither namespace nor host', () => {
    const [test, production] = ['test', 'production'].map((name) => [
      overlay(name).namespace,
      at(all(name), 'Ingress passengers/spec/rules/0/host'),
    ]);
    assert.deepEqual([test?.[0], production?.[0]], ['passengers-test', 'passengers']);
    assert.ok(test?.[1] && production?.[1] && test[1] !== production[1]);
  });

  test('install/passengers.yaml is overlays/install, rendered, byte for byte', () => {
    const expected = render(join(HERE, 'overlays/install'));
    assert.equal(text('../install/passengers.yaml'), expected, 'run "npm run render"');
  });
});

describe('README.md', { skip }, () => {
  const [, section = ''] = /^## On Kubernetes\n([\s\S]*?)^## /m.exec(text('../README.md')) ?? [];

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

  test('two installs in one namespace: neither selects or names what belongs to the other', () => {
    const first = all('install');
    const second = renderOverlay(example('Two installs in one namespace'));
    const name = ({ kind, metadata }: Manifest) => `${kind} ${metadata.name}`;
    const common = first.map(name).filter((it) => second.map(name).includes(it));
    assert.deepEqual(common, ['Namespace passengers']);
    assert.deepEqual(referenceFaults(second), []);
    assert.deepEqual(referenceFaults([...first, ...second]), []);
    const container = MAIN.replace(' ', ' second-');
    assert.ok(at(second, `Service ${at(second, `${container}/env/PGHOST/value`)}`));
  });
});

describe('the next release changes the image of the service and version labels alone', {
  skip,
}, () => {
  const digest = `sha256:${'a'.repeat(64)}`;
  const label = / +app.kubernetes.io\/version: .*\n/g;
  for (const name of OVERLAYS) {
    test(name, () => {
      const { images, labels, ...rest } = overlay(name);
      const { newName } = images[0];
      const at = (newTag: string, version: string) => {
        const released = [{ name: 'passengers', newName, newTag, digest }, ...images.slice(1)];
        const pairs = { 'app.kubernetes.io/version': version };
        return renderText({ ...rest, images: released, labels: [...labels, { pairs }] });
      };
      const next = at('1.10', '1.10');
      assert.ok(next.includes(`${newName}:1.10@${digest}\n`));
      const without = (text: string) => text.replaceAll(label, '').replaceAll(/:1\.\d+@/g, '');
      assert.equal(without(next), without(at('1.9', '1.9')));
    });
  }
});
