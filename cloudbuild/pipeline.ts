/**
 * cloudbuild.yaml on this machine, as it stands: real npm, tests, image, registry, kustomize and git.
 * Where a cluster would be, the image itself runs, and what is asked of the cluster is checked.
 *
 *     npm run pipeline                        all of it, of the last commit, from an empty registry
 *     npm run pipeline -- --until push        up to that step, before you push
 *     npm run pipeline -- --done check        when the step check has just run
 *     KUBECONFIG=… npm run pipeline -- --cluster --substitutions _TEST_URL=…,_REGISTRY=…
 *                                             on a real cluster, which has to reach the registry
 *
 * As root, on Debian with buildah, runc, skopeo, docker-registry, kubectl and debootstrap. Nothing
 * leaves the machine: the origin is a copy of this repository.
 */
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import {
  type Container,
  type Image,
  openImage,
  PROBES,
  PUBLIC,
  startContainer,
} from '../test/container.ts';
import { startDatabase, type TestDatabase, until } from '../test/harness.ts';
import { BASE, buildah, ensureBase, storage } from './base-image.ts';
import type { Values } from './cloudbuild.ts';
import { ask, root } from './commands.ts';
import { findKustomize } from './kustomize.ts';
import { lookUp, type Outcome, openSite, type Site } from './machine.ts';
import { type Answer, type Call, createRecorder, type Recorder } from './recorder.ts';

const SECRET = randomBytes(32).toString('hex');
const MOST_LINES = 150; // of the published diff

const { values: options } = parseArgs({
  options: {
    until: { type: 'string' },
    done: { type: 'string', multiple: true, default: [] },
    config: { type: 'string', default: 'cloudbuild.yaml' },
    substitutions: { type: 'string', default: '' },
    cluster: { type: 'boolean', default: false },
  },
});

const cancelled = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => cancelled.abort());
const home = await mkdtemp(join(tmpdir(), 'pipeline-'));
const stage = createStage();
try {
  await main();
} finally {
  await stage.clear();
  await rm(home, { recursive: true });
}

async function main(): Promise<void> {
  const began = performance.now();
  ensureBase();
  const recorder = createRecorder({
    ...stage,
    lookUp: (image) => void lookUp(home, image),
    cancel: () => cancelled.abort(),
  });
  const site = await openSite({
    home,
    source: root,
    storage,
    kustomize: findKustomize(),
    answer: options.cluster ? (call) => askCluster(call, recorder) : recorder.answer,
    print: (line) => console.log(line),
  });
  try {
    takeHead(site);
    const outcome = await site.run({
      config: options.config,
      substitutions: { ...(!options.cluster && { _TEST_URL: PUBLIC }), ...substitutions() },
      secrets: { 'git-token': randomBytes(16).toString('hex') },
      until: options.until,
      done: options.done,
      cancelled: cancelled.signal,
    });
    report(outcome, site, (performance.now() - began) / 1000);
  } finally {
    await site.close();
  }
}

/** The origin's main is the last commit here, whatever the branch is called. */
function takeHead(site: Site): void {
  const head = ask('git', ['-C', root, 'rev-parse', 'HEAD']);
  ask('git', ['-C', site.origin, 'update-ref', 'refs/heads/main', head]);
  if (ask('git', ['-C', root, 'status', '--porcelain']) !== '')
    console.log('what is not committed takes no part in this');
  site.publishBase(BASE, BASE.replace('docker.io/library/', ''));
}

function substitutions(): Values {
  const pairs = options.substitutions.split(',').filter(Boolean);
  return Object.fromEntries(
    pairs.map((one) => [one.split('=')[0], one.slice(one.indexOf('=') + 1)]),
  );
}

function report({ status, reason, steps, commit }: Outcome, site: Site, seconds: number): void {
  for (const one of steps)
    console.log(`${one.status.padEnd(9)} ${one.seconds.toFixed(1).padStart(6)} s  ${one.id}`);
  const published = ask('git', ['-C', site.origin, 'diff', commit, 'main']).split('\n');
  for (const line of published.slice(0, MOST_LINES)) console.log(line);
  if (published.length > MOST_LINES) console.log(`… ${published.length - MOST_LINES} lines more`);
  console.log(`pipeline: ${status}${reason ? `, ${reason}` : ''}, ${Math.round(seconds)} s`);
  process.exitCode = status === 'SUCCESS' ? 0 : 1;
}

/** On a real cluster its own kubectl answers; Google Cloud is still recorded. */
async function askCluster(call: Call, recorder: Recorder): Promise<Answer> {
  if (call.command !== 'kubectl') return recorder.answer(call);
  const how = { input: call.input, encoding: 'utf8' } as const;
  const { status, stdout, stderr } = spawnSync('kubectl', call.args, how);
  return { code: status ?? 1, output: stdout + stderr };
}

/** Where images serve: one container at a time, on a PostgreSQL that outlives it. */
function createStage() {
  let database: TestDatabase | undefined;
  let running: { image: Image; container: Container } | undefined;

  async function clear(): Promise<void> {
    await empty();
    await database?.stop();
  }

  async function empty(): Promise<void> {
    const { image, container } = running ?? {};
    running = undefined;
    await container?.stop();
    image?.close();
  }

  async function serve(_: string, name: string | undefined): Promise<void> {
    await empty();
    if (!name) return;
    database ??= await startDatabase();
    buildah('pull', '--quiet', '--tls-verify=false', name); // from the registry, as a cluster does
    const image = openImage(name);
    const environment = { DATABASE_URL: database.url, JWT_SECRET: SECRET, AUTH: 'write' };
    const container = await startContainer(image, environment);
    running = { image, container };
    const ended = container.ended.then((code) => {
      throw new Error(`the container ended with ${code}`);
    });
    await Promise.race([until(isReady, 60_000), ended]);
  }

  return { serve, clear, token: signToken };
}

function isReady(): Promise<boolean> {
  return fetch(`${PROBES}/readyz`).then(
    ({ ok }) => ok,
    () => false,
  );
}

function signToken(): string {
  const args = ['--import', 'tsx', 'app.ts', 'token', '--sub', 'pipeline', '--expires', '15m'];
  const env = { PATH: process.env.PATH, JWT_SECRET: SECRET };
  return ask(process.execPath, args, { cwd: root, env });
}
