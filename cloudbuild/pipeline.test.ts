/**
 * cloudbuild.yaml and production.yaml as they stand, run to success and to every kind of failure.
 * Real: the steps' programs, npm, buildah, a registry, skopeo, kustomize, git. Small: the image, and
 * what the tests of the project would take minutes for (`npm run pipeline` runs those).
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { BASE } from './base-image.ts';
import { findKustomize } from './kustomize.ts';
import { type Job, lookUp, type Outcome, openSite, type Site } from './machine.ts';
import { createRecorder, type Recorder, type Surroundings } from './recorder.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const NEEDED = ['buildah', 'skopeo', 'docker-registry', 'kubectl', 'dpkg'];
const missing = NEEDED.filter((command) => spawnSync('which', [command]).status !== 0);
const isRoot = process.getuid?.() === 0;
const skip =
  !process.env.CI && (missing.length > 0 || !isRoot) && `needs root, and ${missing} installed`;
const GIT_TOKEN = 'the token that git pushes with';
const SHOWN = ['install', 'check', 'image-test']; // the first run has shown that they run
const USER_TOKEN = 'the token that the deployment signed';

let home: string;
let site: Site;
let recorder: Recorder;
let surroundings: Surroundings;
let cancelled: AbortController;
let log: string[];

before(async () => {
  if (skip) return;
  home = await mkdtemp(join(tmpdir(), 'pipeline test-'));
  const source = await makeSource();
  surroundings = {
    serve: async () => {},
    token: () => USER_TOKEN,
    lookUp: (image) => void lookUp(home, image),
    cancel: () => cancelled.abort(),
  };
  recorder = createRecorder(surroundings);
  site = await openSite({
    home,
    source,
    storage: storage(),
    kustomize: findKustomize(),
    answer: (call) => recorder.answer(call),
    print: (line) => log.push(line),
  });
  publishBase('first');
});

after(async () => {
  await site?.close();
  if (home) await rm(home, { recursive: true });
});

function storage(): string[] {
  return ['--root', join(home, 'storage'), '--runroot', join(home, 'run')];
}

/** The project in small: its pipeline and its manifests, an image of one file, and quick scripts. */
async function makeSource(): Promise<string> {
  const source = join(home, 'source');
  await mkdir(source);
  symlinkSync(join(ROOT, 'node_modules'), join(home, 'node_modules'));
  for (const part of ['cloudbuild.yaml', 'cloudbuild', 'kustomize', 'install', '.gitignore'])
    cpSync(join(ROOT, part), join(source, part), { recursive: true });
  const { version, scripts } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  const quick = {
    check: 'echo checked',
    'test:image': 'echo tested $IMAGE',
    scan: 'mkdir -p .pipeline && echo {} > .pipeline/sbom.json && :',
    smoke: `echo smoke && test -n "$TOKEN" && test ! -e '${home}/smoke fails' && :`, // : takes the URL
    acceptance: `echo acceptance && test -n "$TOKEN" && test ! -e '${home}/acceptance fails' && :`,
    'test:kustomize': `sh '${home}/meanwhile' && grep -q sha256: install/passengers.yaml`,
  };
  const manifest = { name: 'small', version, type: 'module', scripts: { ...scripts, ...quick } };
  writeFileSync(join(source, 'package.json'), JSON.stringify(manifest));
  writeFileSync(join(home, 'meanwhile'), '');
  writeFileSync(join(source, 'app.txt'), 'the code');
  writeFileSync(
    join(source, 'Dockerfile'),
    `FROM ${BASE}
COPY . /
ARG COMMIT BASE_DIGEST
LABEL org.opencontainers.image.revision=$COMMIT org.opencontainers.image.base.digest=$BASE_DIGEST
`,
  );
  gitIn(source, 'init', '--quiet', '--initial-branch=main');
  commit(source, 'The project');
  return source;
}

function gitIn(directory: string, ...args: string[]): string {
  const author = ['-c', 'user.name=test', '-c', 'user.email=test@localhost'];
  return execFileSync('git', ['-C', directory, ...author, ...args], { encoding: 'utf8' }).trim();
}

function commit(directory: string, message: string): void {
  gitIn(directory, 'add', '--all');
  gitIn(directory, 'commit', '--quiet', '--message', message);
}

/** A base image of one file, which says what it is. */
function publishBase(content: string): void {
  const buildah = (...args: string[]) =>
    execFileSync('buildah', [...storage(), ...args], { encoding: 'utf8' }).trim();
  writeFileSync(join(home, 'content'), content);
  const container = buildah('from', 'scratch');
  buildah('copy', container, join(home, 'content'), '/content');
  buildah('commit', '--quiet', '--rm', container, `localhost/base:${content}`);
  site.publishBase(`localhost/base:${content}`, BASE.replace('docker.io/library/', ''));
}

/** Someone pushes to main. */
function pushCode(content: string): void {
  const clone = join(home, 'somebody');
  rmSync(clone, { recursive: true, force: true });
  execFileSync('git', ['clone', '--quiet', site.origin, clone]);
  writeFileSync(join(clone, 'app.txt'), content);
  commit(clone, `Write ${content}`);
  gitIn(clone, 'push', '--quiet', 'origin', 'main');
}

async function build(job: Job = {}): Promise<Outcome> {
  cancelled = new AbortController();
  log = [];
  const secrets = { 'git-token': GIT_TOKEN };
  return site.run({ secrets, cancelled: cancelled.signal, done: SHOWN, ...job });
}

const main = () => gitIn(site.origin, 'rev-parse', 'main');
const shown = (file: string) => gitIn(site.origin, 'show', `main:${file}`);
const image = (tag: string) => `${site.registry}/passengers:${tag}`;
const digestOf = (tag: string) => lookUp(home, image(tag)).digest;
const tagOf = ({ commit }: Outcome) => `main-${commit.slice(0, 7)}`;
const serving = () => recorder.revisions.get('passengers-test')?.at(-1);
const isThere = (tag: string) => {
  try {
    return Boolean(digestOf(tag));
  } catch {
    return false;
  }
};

function assertStatus({ status, reason, steps }: Outcome, expected: string, step?: string): void {
  const told = `${JSON.stringify(steps)}\n${log.join('\n')}`;
  assert.equal(status, expected, told);
  if (step) assert.equal(reason, `step ${step}`, told);
}

/** Files with a content while `act` runs. */
async function whileThere<T>(name: string, content: string, act: () => Promise<T>): Promise<T> {
  const file = join(home, name);
  const before = existsSync(file) ? readFileSync(file) : undefined;
  writeFileSync(file, content);
  try {
    return await act();
  } finally {
    if (before) writeFileSync(file, before);
    else rmSync(file);
  }
}

describe('the pipeline', { skip }, () => {
  let first: Outcome;

  test('a push goes from an empty registry to a published install/passengers.yaml', async () => {
    first = await build({ done: [] });
    assertStatus(first, 'SUCCESS');
    const ids = first.steps.map(({ id }) => id);
    assert.deepEqual(ids.slice(0, 3), ['install', 'check', 'base']);
    assert.deepEqual(ids.slice(-4), ['smoke', 'acceptance', 'promote', 'publish']);
    assert.equal(gitIn(site.origin, 'log', '-1', '--format=%s'), `Publish ${tagOf(first)}`);
  });

  test('the digest that was tested is the promoted one, and the published one', () => {
    const tested = digestOf(`${tagOf(first)}.dev`);
    assert.equal(serving(), `${site.registry}/passengers@${tested}`);
    assert.equal(digestOf(tagOf(first)), tested);
    const published = `image: ${image(tagOf(first))}@${tested}`;
    assert.ok(shown('install/passengers.yaml').includes(published));
    for (const overlay of ['test', 'install', 'production'])
      assert.match(shown(`kustomize/overlays/${overlay}/kustomization.yaml`), new RegExp(tested));
  });

  test('the cleanup policy keeps what was promoted, and the last ten', () => {
    const policy = JSON.parse(readFileSync(join(ROOT, 'cloudbuild/cleanup-policy.json'), 'utf8'));
    const [prefix] = policy[0].condition.tagPrefixes;
    assert.equal(digestOf(`${prefix}${tagOf(first)}`), digestOf(tagOf(first)));
    assert.equal(policy[1].mostRecentVersions.keepCount, 10);
  });

  test('version and commit stand in the labels, and no selector has them', () => {
    const { version } = JSON.parse(shown('package.json'));
    const label = `app.kubernetes.io/version: ${version}-${first.commit.slice(0, 7)}`;
    const text = shown('install/passengers.yaml');
    assert.ok(text.includes(label));
    for (const [, selector = ''] of text.matchAll(/(?:matchLabels|selector):\n((?: {4,}.*\n)+)/g))
      assert.ok(!selector.includes(label), selector);
  });

  test('what is published starts no build: the push trigger ignores it', () => {
    const [, patterns = ''] =
      /--ignored-files='([^']+)'/.exec(
        readFileSync(join(ROOT, 'cloudbuild/triggers.md'), 'utf8'),
      ) ?? [];
    const folders = patterns.split(',').map((one) => one.replace(/\*\*$/, ''));
    const changed = gitIn(site.origin, 'diff', '--name-only', first.commit, 'main').split('\n');
    for (const file of changed)
      assert.ok(
        folders.some((one) => file.startsWith(one)),
        file,
      );
  });

  test('no secret is in an argument or in the log', async () => {
    const commands = await site.commands();
    assert.ok(
      commands.some((one) => one.startsWith('git') && one.includes('push')),
      'git is seen',
    );
    assert.ok(
      commands.some((one) => one.includes('exec deployment/passengers')),
      'kubectl is seen',
    );
    const calls = recorder.calls.map((call) => JSON.stringify(call));
    for (const secret of [GIT_TOKEN, USER_TOKEN]) {
      for (const line of [...commands, ...log, ...calls]) assert.ok(!line.includes(secret), line);
    }
    assert.ok(
      log.some((line) => line.endsWith('acceptance')),
      'the log is seen',
    );
  });

  test('the bill of materials is stored', () => {
    const stored = `objects/laptop-passengers/builds/${tagOf(first)}/.pipeline/sbom.json`;
    assert.ok(existsSync(join(home, stored)));
  });

  test('a second run with nothing changed makes no image and no commit', async () => {
    const before = main();
    assert.notEqual(before, first.commit, 'this runs on what the pipeline itself committed');
    const second = await build();
    assertStatus(second, 'CANCELLED');
    assert.equal(main(), before);
    assert.ok(!isThere(`${tagOf(second)}.dev`));
  });

  test('a failing rollout shows the logs, is undone, and promotes nothing', async () => {
    pushCode('which does not start');
    const before = [serving(), main()];
    surroundings.fails = 'rollout status';
    const failed = await build();
    surroundings.fails = undefined;
    assertStatus(failed, 'FAILURE', 'deploy-test');
    assert.ok(log.some((line) => line.endsWith('the logs')));
    assert.deepEqual([serving(), main()], before);
    assert.ok(!isThere(tagOf(failed)));
  });

  for (const step of ['smoke', 'acceptance']) {
    test(`a failing ${step} is undone, and promotes and publishes nothing`, async () => {
      const before = [serving(), main()];
      const failed = await whileThere(`${step} fails`, '', () => build());
      assertStatus(failed, 'FAILURE', step);
      assert.ok(isThere(`${tagOf(failed)}.dev`));
      assert.ok(!isThere(tagOf(failed)));
      assert.deepEqual([serving(), main()], before);
    });
  }

  test('a push that comes in between is kept, and what it brings is not promoted', async () => {
    const clone = join(home, 'racer');
    const race = `[ -e '${clone}' ] && exit 0
git clone --quiet '${site.origin}' '${clone}' && cd '${clone}'
git config user.name racer; git config user.email racer@localhost
echo raced > raced.txt; git add raced.txt; git commit --quiet --message Raced; git push --quiet`;
    const raced = await whileThere('meanwhile', race, () => build());
    assertStatus(raced, 'SUCCESS');
    assert.ok(log.some((line) => line.includes('moved meanwhile')));
    const subjects = gitIn(site.origin, 'log', '-2', '--format=%s').split('\n');
    assert.deepEqual(subjects, [`Publish ${tagOf(raced)}`, 'Raced']);
    assert.equal(shown('raced.txt'), 'raced');
    assert.match(shown('install/passengers.yaml'), new RegExp(digestOf(tagOf(raced))));
  });

  test('an older build does not publish over a newer one', async () => {
    const before = main();
    const older = await build({ commit: first.commit });
    assertStatus(older, 'SUCCESS');
    assert.ok(log.some((line) => line.includes('is newer than')));
    assert.equal(main(), before);
  });

  test('a changed base image alone makes an image and publishes it', async () => {
    const last = await build(); // what was raced in
    assertStatus(last, 'SUCCESS');
    publishBase('second');
    const rebuilt = await build();
    assertStatus(rebuilt, 'SUCCESS');
    assert.ok(log.some((line) => line.includes('the base image is')));
    assert.ok(!log.some((line) => line.includes('the code changed')));
    assert.notEqual(digestOf(tagOf(rebuilt)), digestOf(tagOf(last)));
    assert.match(shown('install/passengers.yaml'), new RegExp(digestOf(tagOf(rebuilt))));
  });

  const NUMBERS = ['1.10', '1e5', '0123456', '2024-01-01', 'true'];
  test(`tags that look like something else stay texts: ${NUMBERS}`, () => {
    const workspace = join(home, 'workspace');
    for (const tag of NUMBERS) {
      const { PATH } = process.env;
      const env = { PATH: `${home}/bin:${PATH}`, HOME: process.env.HOME, BRANCH: 'main' };
      const COMMIT = gitIn(site.origin, 'rev-parse', 'main');
      const args = ['run', '--silent', 'publish', '--', image(tag)];
      execFileSync('npm', args, { cwd: workspace, env: { ...env, COMMIT }, stdio: 'pipe' });
      assert.match(shown('install/passengers.yaml'), new RegExp(`:${tag}@sha256:`));
    }
  });
});

describe('production', { skip }, () => {
  const config = 'cloudbuild/production.yaml';
  const production = () =>
    gitIn(site.origin, 'branch', '--list', 'production', '--format=%(objectname)');
  let released: Outcome;

  before(async () => {
    if (skip) return;
    pushCode('to be released');
    released = await build();
  });

  test('a failing smoke is undone, and the branch production is not moved', async () => {
    assertStatus(released, 'SUCCESS');
    const failed = await whileThere('smoke fails', '', () => build({ config, done: ['install'] }));
    assertStatus(failed, 'FAILURE', 'smoke');
    assert.ok(
      recorder.calls.some(
        ({ args }) =>
          args.join(' ') === '--namespace passengers rollout undo deployment/passengers',
      ),
    );
    assert.equal(production(), '');
  });

  test('the published digest is applied, and the branch production moves to its commit', async () => {
    const outcome = await build({ config, done: ['install'] });
    assertStatus(outcome, 'SUCCESS');
    const digest = digestOf(tagOf(released));
    const applied = recorder.revisions.get('passengers')?.at(-1);
    assert.equal(applied, `${site.registry}/passengers@${digest}`);
    assert.equal(production(), outcome.commit);
    const routes = `objects/laptop-passengers/production/${outcome.commit.slice(0, 7)}/.pipeline/routes.yaml`;
    assert.match(readFileSync(join(home, routes), 'utf8'), /kind: List/);
  });

  test('a tag that was moved to another image is noticed before anything is applied', async () => {
    const before = recorder.calls.length;
    const copy = (from: string, to: string) =>
      execFileSync(join(home, 'bin/skopeo'), ['copy', `docker://${from}`, `docker://${to}`], {
        stdio: 'pipe',
      });
    const digest = digestOf(tagOf(released));
    copy(
      `${site.registry}/docker.io/library/${BASE.replace('docker.io/library/', '')}`,
      image(tagOf(released)),
    );
    const outcome = await build({ config, done: ['install'] });
    assertStatus(outcome, 'FAILURE', 'verify');
    assert.equal(recorder.calls.length, before);
    copy(`${site.registry}/passengers@${digest}`, image(tagOf(released)));
  });
});

describe('the recorder', { skip }, () => {
  const answer = (args: string[], input = '') =>
    recorder.answer({ command: 'kubectl', args, input });

  const REFUSED: [what: string, args: string[], input: string, why: RegExp][] = [
    ['a call that it does not know', ['delete', 'namespace', 'passengers'], '', /not known/],
    [
      'a Secret',
      ['apply', '--filename=-'],
      'apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: b}',
      /no Secret/,
    ],
    [
      'an object without a namespace',
      ['apply', '--filename=-'],
      'apiVersion: v1\nkind: Service\nmetadata: {name: a}',
      /no namespace/,
    ],
    ['text that is no YAML', ['apply', '--filename=-'], 'a: [', /./],
    [
      'an image by its tag',
      ['apply', '--filename=-'],
      'apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: passengers, namespace: b}\nspec: {template: {spec: {containers: [{image: "a:1"}]}}}',
      /no digest/,
    ],
    [
      'a rollout of nothing',
      ['--namespace', 'nowhere', 'rollout', 'status', 'deployment/passengers', '--timeout=1s'],
      '',
      /not found/,
    ],
  ];

  for (const [what, args, input, why] of REFUSED) {
    test(`${what} fails`, async () => {
      const { code, output } = await answer(args, input);
      assert.notEqual(code, 0);
      assert.match(output, why);
    });
  }
});
