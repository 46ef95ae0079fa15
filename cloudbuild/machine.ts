/**
 * What a build on this machine finds instead of Google's: a registry of images on 127.0.0.1, a bare
 * repository as origin, `docker` on buildah, and a recorder where a cluster would be. All of it
 * lives in one directory, so that runs can follow each other, and goes with it.
 */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, realpathSync } from 'node:fs';
import { chmod, cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { type AddressInfo, createServer as createSocket } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  type Build,
  type BuildResult,
  type Machine,
  readBuild,
  runBuild,
  type Values,
} from './cloudbuild.ts';
import type { Answer, Call } from './recorder.ts';

export type Plan = {
  /** Where everything is kept. */
  home: string;
  /** The repository that the origin starts as. */
  source: string;
  /** Arguments that tell buildah where its images are. */
  storage: string[];
  /** kustomize with `edit`, which kubectl's has not. */
  kustomize: string;
  /** Answers what a step asks a cluster or Google Cloud; without it kubectl is the machine's own. */
  answer: (call: Call) => Promise<Answer>;
  print: (line: string) => void;
};

export type Site = {
  registry: string;
  origin: string;
  /** Puts an image of buildah's storage into the registry, as NAME. */
  publishBase: (image: string, name: string) => void;
  /** Every command that steps ran, with its arguments, a line each. */
  commands: () => Promise<string[]>;
  run: (job: Job) => Promise<Outcome>;
  close: () => Promise<void>;
};

/** One build: what a trigger would say of it. */
export type Job = {
  config?: string;
  branch?: string;
  /** Where the branch was when the build was asked for; without it, where it is now. */
  commit?: string;
  substitutions?: Values;
  secrets?: Values;
  until?: string | undefined;
  done?: string[];
  cancelled?: AbortSignal;
};

export type Outcome = BuildResult & { commit: string; build: Build };

/** Sets the machine up; close() ends what it started and leaves the directory to the caller. */
export async function openSite(plan: Plan): Promise<Site> {
  const { home, source } = plan;
  await mkdir(join(home, 'bin'), { recursive: true });
  const origin = join(home, 'origin.git');
  if (!existsSync(origin)) makeOrigin(source, origin);
  const registry = await startRegistry(home);
  const server = await startAnswering(plan.answer);
  const environment = await writeCommands(plan, registry.address, server.url);
  return {
    registry: registry.address,
    origin,
    publishBase: (image, name) => {
      const to = `docker://${registry.address}/docker.io/library/${name}`;
      const how = ['push', '--quiet', '--tls-verify=false', image, to];
      execFileSync('buildah', [...plan.storage, ...how], { stdio: 'ignore' });
    },
    commands: async () => (await readFile(join(home, 'commands'), 'utf8')).trim().split('\n'),
    run: (job) => runJob(plan, { registry: registry.address, origin, environment }, job),
    close: async () => {
      await server.close();
      await registry.stop();
    },
  };
}

/** GitHub, too, gives a commit to who can name it. */
function makeOrigin(source: string, origin: string): void {
  execFileSync('git', ['clone', '--quiet', '--bare', '--no-tags', source, origin]);
  const allow = ['config', 'uploadpack.allowAnySHA1InWant', 'true'];
  execFileSync('git', ['-C', origin, ...allow]);
}

/** Asks the registry of the site in `home` for an image. Throws where there is none. */
export function lookUp(home: string, image: string): { digest: string; labels: Values } {
  const args = ['inspect', '--no-tags', `docker://${image}`];
  const found = JSON.parse(execFileSync(join(home, 'bin/skopeo'), args, { encoding: 'utf8' }));
  return { digest: found.Digest, labels: found.Labels ?? {} };
}

// --- Registry -------------------------------------------------------------------

async function startRegistry(home: string) {
  const port = await freePort();
  const address = `127.0.0.1:${port}`;
  const config = {
    version: '0.1',
    log: { level: 'error', accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: join(home, 'registry') } },
    http: { addr: address },
  };
  const file = join(home, 'registry.json'); // JSON is YAML
  await writeFile(file, JSON.stringify(config));
  await writeFile(join(home, 'registries.conf'), registriesConf(address));
  const child = spawn('docker-registry', ['serve', file], { stdio: 'ignore' });
  const ended = once(child, 'exit');
  await untilAnswered(`http://${address}/v2/`, child);
  const stop = async () => {
    child.kill();
    await ended;
  };
  return { address, stop };
}

/** Images of Docker's registry are looked for here; the local one has no TLS. */
function registriesConf(address: string): string {
  const docker = `prefix = "docker.io"\nlocation = "${address}/docker.io"\ninsecure = true\n`;
  return `[[registry]]\n${docker}\n[[registry]]\nlocation = "${address}"\ninsecure = true\n`;
}

async function untilAnswered(url: string, child: ReturnType<typeof spawn>): Promise<void> {
  while (child.exitCode === null) {
    if (await fetch(url).then(Boolean, () => false)) return;
    await sleep(50);
  }
  throw new Error(`docker-registry ended with ${child.exitCode}`);
}

export async function freePort(): Promise<number> {
  const socket = createSocket();
  await once(socket.listen(0, '127.0.0.1'), 'listening');
  const { port } = socket.address() as AddressInfo;
  await once(socket.close(), 'close');
  return port;
}

// --- Commands -------------------------------------------------------------------

/** Where the commands of the steps that stand for others bring their arguments. */
async function startAnswering(answer: Plan['answer']) {
  const server = createServer(async (request, response) => {
    response.end(JSON.stringify(await answer(JSON.parse(await text(request)))));
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address() as AddressInfo;
  const close = async () => {
    server.closeAllConnections();
    await once(server.close(), 'close');
  };
  return { url: `http://127.0.0.1:${port}`, close };
}

/** The commands that steps find first in PATH; each notes that it was called. */
async function writeCommands(plan: Plan, registry: string, url: string): Promise<Values> {
  const { home, storage } = plan;
  const bin = join(home, 'bin');
  const conf = join(home, 'registries.conf');
  const asker = join(home, 'ask.cjs');
  await writeFile(asker, asking(url));
  await writeFile(join(home, 'commands'), '', { flag: 'a' });
  const asked = (command: string) => `exec "${process.execPath}" "${asker}" ${command} "$@"`;
  const buildah = ['buildah', '--registries-conf', conf, ...storage].map(shellQuoted).join(' ');
  const commands: Record<string, string> = {
    docker: dockerOn(buildah, registry),
    skopeo: `exec ${real('skopeo')} --registries-conf ${shellQuoted(conf)} "$@"`,
    kustomize: `exec ${shellQuoted(plan.kustomize)} "$@"`,
    git: `exec ${real('git')} "$@"`,
    npm: `exec ${real('npm')} "$@"`,
    kubectl: `case " $* " in *' kustomize '*|*' --client '*) exec ${real('kubectl')} "$@" ;; esac
${asked('kubectl')}`,
    gcloud: asked('gcloud'),
  };
  for (const [name, body] of Object.entries(commands)) {
    const note = `printf '%s\\n' "${name} $*" >> ${shellQuoted(join(home, 'commands'))}`;
    await writeFile(join(bin, name), `#!/bin/sh\n${note}\n${body}\n`);
    await chmod(join(bin, name), 0o755);
  }
  const { PATH = '', HOME = '' } = process.env;
  return { PATH: `${bin}:${PATH}`, HOME };
}

/** The words of docker that the steps use, said to buildah. */
function dockerOn(buildah: string, registry: string): string {
  return `b() { ${buildah} "$@"; }
word=$1; shift
case $word in
  info) echo buildah ;;
  pull) shift "$(($# - 1))"; b pull --quiet --policy always "$1" ;;
  image) shift "$(($# - 1))"; echo "$1@$(b inspect --type image --format '{{.FromImageDigest}}' "$1")" ;;
  build) b build --isolation chroot --layers --quiet "$@" ;;
  push) case $1 in ${registry}/*) b push --quiet --tls-verify=false "$1" "docker://$1" ;;
    *) echo "the registry here is ${registry}, not that of $1" >&2; exit 64 ;; esac ;;
  run) # --rm --privileged, an image of tools and a command: the tools here are this machine's
    if [ "$2" = --privileged ]; then
      while case $1 in --env=*) export "\${1#--env=}" ;; -*) ;; *) false ;; esac; do shift; done
      shift; exec "$@"
    fi
    # --rm --entrypoint COMMAND IMAGE ARGS
    command=$3 image=$4; shift 4; container=$(b from --pull-never "$image") || exit
    b run --isolation chroot "$container" -- "$command" "$@"; code=$?
    b rm "$container" >/dev/null; exit $code ;;
  *) echo "docker $word is not known here" >&2; exit 64 ;;
esac`;
}

/** Asks the server above, and ends as it says. Plain JavaScript, since it is started often. */
function asking(url: string): string {
  return `const [command, ...args] = process.argv.slice(2);
const input = args.includes('--filename=-') ? require('node:fs').readFileSync(0, 'utf8') : '';
fetch('${url}', { method: 'POST', body: JSON.stringify({ command, args, input }) })
  .then((answer) => answer.json())
  .then(({ code, output }) => {
    process[code === 0 ? 'stdout' : 'stderr'].write(output);
    process.exitCode = code;
  });
`;
}

function real(command: string): string {
  return shellQuoted(execFileSync('which', [command], { encoding: 'utf8' }).trim());
}

function shellQuoted(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}

// --- Builds ---------------------------------------------------------------------

type Place = { registry: string; origin: string; environment: Values };

/** Runs one build on a fresh checkout, as its trigger would. */
async function runJob(plan: Plan, { registry, origin, environment }: Place, job: Job) {
  const { config = 'cloudbuild.yaml', branch = 'main', secrets = {}, until, done = [] } = job;
  const workspace = join(plan.home, 'workspace');
  const commit = await checkOut(workspace, origin, job.commit ?? branch);
  const values = { ...builtIn(commit, branch), _REGISTRY: registry, ...job.substitutions };
  const build = readBuild(await readFile(join(workspace, config), 'utf8'), values);
  const machine: Machine = {
    workspace,
    environment,
    print: plan.print,
    cancelled: job.cancelled ?? new AbortController().signal,
    readSecret: (versionName) => {
      const [, name = ''] =
        /^projects\/[^/]+\/secrets\/([^/]+)\/versions\/\w+$/.exec(versionName) ?? [];
      const secret = secrets[name];
      if (secret === undefined) throw new Error(`there is no secret ${versionName}`);
      return secret;
    },
    pushImage: async (image) => {
      execFileSync(join(plan.home, 'bin/docker'), ['push', image], { stdio: 'ignore' });
    },
    storeObjects: async (paths, location) => {
      const to = join(plan.home, 'objects', location.replace('gs://', ''));
      await mkdir(to, { recursive: true });
      for (const path of paths)
        await cp(join(workspace, path), join(to, path), { recursive: true });
    },
  };
  return { ...(await runBuild(build, machine, { until, done })), commit, build };
}

/** Like Cloud Build's, the checkout has one commit and no more. */
async function checkOut(workspace: string, origin: string, branch: string): Promise<string> {
  await rm(workspace, { recursive: true, force: true });
  await mkdir(workspace, { recursive: true });
  const git = (...args: string[]) =>
    execFileSync('git', ['-C', workspace, ...args], { encoding: 'utf8' }).trim();
  git('init', '--quiet');
  git('remote', 'add', 'origin', `file://${realpathSync(origin)}`);
  git('fetch', '--quiet', '--depth=1', 'origin', branch);
  git('checkout', '--quiet', 'FETCH_HEAD');
  return git('rev-parse', 'HEAD');
}

function builtIn(commit: string, branch: string): Values {
  return {
    PROJECT_ID: 'laptop',
    LOCATION: 'global',
    BUILD_ID: crypto.randomUUID(),
    COMMIT_SHA: commit,
    SHORT_SHA: commit.slice(0, 7),
    BRANCH_NAME: branch,
    REPO_NAME: 'passengers',
  };
}
