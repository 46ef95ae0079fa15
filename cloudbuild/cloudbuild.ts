/**
 * Cloud Build's part of a build, on the machine at hand: reads a build config as it stands, fills
 * in the substitutions and runs the steps in the order that `waitFor` gives them. A field that is
 * not known here is refused, so that no config means less here than it does there.
 *
 * https://cloud.google.com/build/docs/build-config-file-schema
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { parse } from 'yaml';
import { z } from 'zod';

// --- Config ---------------------------------------------------------------------

const words = z.array(z.string()).optional();
const duration = z.string().regex(/^\d+(\.\d{1,9})?s$/, 'is seconds with an s, as in 600s');
const pair = z.string().regex(/^[A-Za-z_]\w*=/, 'is NAME=value');
const pairs = z.array(pair).optional();

const Step = z.strictObject({
  id: z.string(),
  name: z.string(),
  entrypoint: z.string().optional(),
  args: words,
  env: pairs,
  secretEnv: words,
  dir: z.string().optional(),
  waitFor: words,
  timeout: duration.optional(),
});

const Build = z.strictObject({
  steps: z.array(Step).min(1),
  timeout: duration.optional(),
  images: words,
  artifacts: z
    .strictObject({
      objects: z.strictObject({
        location: z.string().startsWith('gs://'),
        paths: z.array(
          z.string().regex(/^[^*?[]+$/, 'is a plain path; patterns are not known here'),
        ),
      }),
    })
    .optional(),
  availableSecrets: z
    .strictObject({
      secretManager: z.array(z.strictObject({ versionName: z.string(), env: z.string() })),
    })
    .optional(),
  options: z
    .strictObject({
      dynamicSubstitutions: z.boolean().optional(),
      env: pairs,
      logging: z.enum(['CLOUD_LOGGING_ONLY', 'GCS_ONLY', 'LEGACY', 'NONE']).optional(),
      machineType: z.string().optional(),
    })
    .optional(),
  substitutions: z.record(z.string(), z.string()).optional(),
});

type Step = z.infer<typeof Step>;
export type Build = z.infer<typeof Build>;

/** What Cloud Build itself puts in; those that a build has none for are empty. */
const BUILT_IN = [
  ...['PROJECT_ID', 'PROJECT_NUMBER', 'LOCATION', 'BUILD_ID', 'TRIGGER_NAME', 'COMMIT_SHA'],
  ...['REVISION_ID', 'SHORT_SHA', 'REPO_NAME', 'REPO_FULL_NAME', 'BRANCH_NAME', 'TAG_NAME'],
  ...['REF_NAME', 'TRIGGER_BUILD_CONFIG_PATH', 'SERVICE_ACCOUNT', 'SERVICE_ACCOUNT_EMAIL'],
];

export type Values = Record<string, string>;

/** Reads a build config and fills in `given` over its own defaults. Throws on what is not known. */
export function readBuild(text: string, given: Values): Build {
  const read = Build.safeParse(parse(text));
  if (!read.success) throw new Error(`the build config: ${z.prettifyError(read.error)}`);
  const { substitutions = {}, ...template } = read.data;
  const bad = Object.keys(substitutions).filter((one) => !/^_[A-Z0-9_]+$/.test(one));
  if (bad.length > 0) throw new Error(`the name of a substitution is _ and capitals, not ${bad}`);
  const unknown = Object.keys(given).filter((one) => {
    return !BUILT_IN.includes(one) && substitutions[one] === undefined;
  });
  if (unknown.length > 0) throw new Error(`no substitution of the build config: ${unknown}`);
  const values = { ...substitutions, ...given };
  const used = new Set<string>();
  const build = fillIn(template, (word) => substitute(word, values, used));
  const unused = Object.keys(substitutions).filter((one) => !used.has(one));
  if (unused.length > 0) throw new Error(`substitutions that nothing uses: ${unused}`);
  checkReferences(build);
  return build;
}

/** The same data with each text replaced. */
function fillIn<T>(data: T, replace: (text: string) => string): T {
  const walk = (value: unknown): unknown => {
    if (typeof value === 'string') return replace(value);
    if (Array.isArray(value)) return value.map(walk);
    if (value === null || typeof value !== 'object') return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, walk(one)]));
  };
  return walk(data) as T;
}

/** `$NAME`, `${NAME}`, and `$$` for a dollar. A default may hold others (dynamicSubstitutions). */
function substitute(
  text: string,
  values: Values,
  used: Set<string>,
  within: string[] = [],
): string {
  return text.replace(/\$\$|\$\{(\w+)\}|\$(\w+)|\$/g, (found, braced?: string, bare?: string) => {
    if (found === '$$') return '$';
    const word = braced ?? bare;
    if (word === undefined) throw new Error(`expected $NAME, \${NAME} or $$ in ${text}`);
    const value = values[word] ?? (BUILT_IN.includes(word) ? '' : undefined);
    if (value === undefined) throw new Error(`there is no substitution ${word}, used in ${text}`);
    if (within.includes(word)) throw new Error(`the substitution ${word} stands in itself`);
    used.add(word);
    return word.startsWith('_') ? substitute(value, values, used, [...within, word]) : value;
  });
}

function checkReferences({ steps, availableSecrets }: Build): void {
  const ids: string[] = [];
  const secrets = availableSecrets?.secretManager.map(({ env }) => env) ?? [];
  for (const { id, waitFor = [], secretEnv = [] } of steps) {
    if (ids.includes(id)) throw new Error(`two steps are called ${id}`);
    const late = waitFor.filter((one) => one !== '-' && !ids.includes(one));
    if (late.length > 0) throw new Error(`step ${id} waits for ${late}, which is no earlier step`);
    const missing = secretEnv.filter((one) => !secrets.includes(one));
    if (missing.length > 0) throw new Error(`step ${id}: ${missing} is not in availableSecrets`);
    ids.push(id);
  }
  const wanted = steps.flatMap(({ secretEnv = [] }) => secretEnv);
  const idle = secrets.filter((one) => !wanted.includes(one));
  if (idle.length > 0) throw new Error(`secrets that no step uses: ${idle}`);
}

// --- Run ------------------------------------------------------------------------

/** What a build runs on. `environment` is that of every step. */
export type Machine = {
  workspace: string;
  environment: Values;
  readSecret: (versionName: string) => string;
  pushImage: (image: string) => Promise<void>;
  storeObjects: (paths: string[], location: string) => Promise<void>;
  print: (line: string) => void;
  /** Aborts when the build is cancelled. */
  cancelled: AbortSignal;
};

export type Status = 'SUCCESS' | 'FAILURE' | 'TIMEOUT' | 'CANCELLED' | 'QUEUED';
export type StepResult = { id: string; status: Status; seconds: number };
export type BuildResult = { status: Status; steps: StepResult[]; reason?: string };

/** `until` names the last step to run, `done` those that need not run again. */
export type Extent = { until?: string | undefined; done?: string[] };

/** Runs the steps, then pushes the images and stores the objects, as Cloud Build does. */
export async function runBuild(
  build: Build,
  machine: Machine,
  { until, done = [] }: Extent = {},
): Promise<BuildResult> {
  const unknown = [until, ...done].filter((id) => id && !build.steps.some((one) => one.id === id));
  if (unknown.length > 0) throw new Error(`there is no step ${unknown}`);
  const last = until ? build.steps.findIndex(({ id }) => id === until) : build.steps.length - 1;
  const steps = build.steps.slice(0, last + 1);
  const stop = new AbortController();
  const limit = AbortSignal.timeout(milliseconds(build.timeout ?? '3600s'));
  const signal = AbortSignal.any([stop.signal, machine.cancelled, limit]);
  const results = await Promise.all(startAll(steps, build, machine, { signal, stop, done }));
  const failed = results.find(({ status }) => status === 'FAILURE' || status === 'TIMEOUT');
  const result: BuildResult = { steps: results, status: 'SUCCESS' };
  if (failed) return { ...result, status: failed.status, reason: `step ${failed.id}` };
  if (machine.cancelled.aborted) return { ...result, status: 'CANCELLED' };
  if (limit.aborted) return { ...result, status: 'TIMEOUT', reason: 'the build' };
  if (until) return result;
  for (const image of build.images ?? []) await machine.pushImage(image);
  const objects = build.artifacts?.objects;
  if (objects) await machine.storeObjects(objects.paths, objects.location);
  return result;
}

type Course = { signal: AbortSignal; stop: AbortController; done: string[] };

/** Each step as a promise that waits for those it depends on: all before it, unless it says which. */
function startAll(steps: Step[], build: Build, machine: Machine, course: Course) {
  const started = new Map<string, Promise<StepResult>>();
  for (const [index, step] of steps.entries()) {
    const named = step.waitFor?.filter((id) => id !== '-');
    const awaited = named ?? steps.slice(0, index).map(({ id }) => id);
    const run = async (): Promise<StepResult> => {
      const before = await Promise.all(awaited.map((id) => started.get(id)));
      const ready = before.every((one) => one?.status === 'SUCCESS') && !course.signal.aborted;
      if (!ready) return { id: step.id, status: 'QUEUED', seconds: 0 };
      const result = await runStep(index, step, build, machine, course);
      if (result.status !== 'SUCCESS') course.stop.abort();
      return result;
    };
    started.set(step.id, run());
  }
  return started.values();
}

async function runStep(
  index: number,
  step: Step,
  build: Build,
  machine: Machine,
  { signal, done }: Course,
): Promise<StepResult> {
  const { id } = step;
  const began = performance.now();
  const say = (line: string) => machine.print(`Step #${index} - "${id}": ${line}`);
  const end = (status: Status): StepResult => {
    const seconds = (performance.now() - began) / 1000;
    say(`${status} after ${seconds.toFixed(1)} s`);
    return { id, status, seconds };
  };
  if (done.includes(id)) {
    say('told that it has just run');
    return end('SUCCESS');
  }
  const limit = AbortSignal.timeout(milliseconds(step.timeout ?? build.timeout ?? '3600s'));
  const either = AbortSignal.any([signal, limit]);
  const code = await runCommand(step, build, machine, either, say);
  if (limit.aborted) return end('TIMEOUT');
  if (signal.aborted) return end('CANCELLED');
  if (code !== 0) say(`ended with ${code}`);
  return end(code === 0 ? 'SUCCESS' : 'FAILURE');
}

/** Runs the step's command to its end, or to the signal. What it started ends with it. */
async function runCommand(
  step: Step,
  build: Build,
  machine: Machine,
  signal: AbortSignal,
  say: (line: string) => void,
): Promise<unknown> {
  const { entrypoint, args = [], dir = '.' } = step;
  if (!entrypoint) throw new Error(`step ${step.id} needs an entrypoint to run without its image`);
  say(`${entrypoint} ${args.join(' ')}`);
  const child = spawn(entrypoint, args, {
    cwd: resolve(machine.workspace, dir),
    env: environmentOf(step, build, machine),
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true, // a process group, to end the whole of it
  });
  const kill = () => killGroup(child);
  signal.addEventListener('abort', kill);
  for (const stream of [child.stdout, child.stderr]) createInterface(stream).on('line', say);
  const [code, name] = await once(child, 'close').catch((error) => [error.message]);
  signal.removeEventListener('abort', kill);
  return code ?? name;
}

function environmentOf(step: Step, build: Build, machine: Machine): Values {
  const own = [...(build.options?.env ?? []), ...(step.env ?? [])].map((one): [string, string] => {
    const at = one.indexOf('=');
    return [one.slice(0, at), one.slice(at + 1)];
  });
  const secrets = build.availableSecrets?.secretManager ?? [];
  const wanted = secrets.filter(({ env }) => step.secretEnv?.includes(env));
  const read = wanted.map(({ env, versionName }) => [env, machine.readSecret(versionName)]);
  return { ...machine.environment, ...Object.fromEntries(own), ...Object.fromEntries(read) };
}

function killGroup({ pid }: ChildProcess): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // it has ended already
  }
}

function milliseconds(text: string): number {
  return Math.ceil(Number(text.slice(0, -1)) * 1000);
}
