/**
 * Builds the image.
 *
 *     npm run image                 as passengers:VERSION
 *     npm run image -- TAG          as TAG
 *
 * With docker or podman where an engine answers. Else with buildah, as root, on the stand-in of
 * base-image.ts: good for tests, not for publishing. BRANCH, COMMIT and SOURCE are git's, unless
 * the environment says them, as in a pipeline whose checkout has no branch.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { BASE, buildah, ensureBase, storage } from './base-image.ts';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const { version: VERSION } = JSON.parse(readFileSync(`${root}/package.json`, 'utf8'));

/** Builds the image as `tag` and returns the name of what built it. */
export function buildImage(tag: string): 'docker' | 'podman' | 'buildah' {
  for (const engine of ['docker', 'podman'] as const) {
    if (ask(engine, 'info') === '') continue; // there, but no engine behind it
    run(engine, 'pull', '--quiet', BASE);
    const digests = ask(engine, 'image', 'inspect', '--format', '{{index .RepoDigests 0}}', BASE);
    run(engine, 'build', '--tag', tag, ...labels(digests.split('@')[1] ?? ''), root);
    return engine;
  }
  ensureBase();
  const digest = buildah('inspect', '--type', 'image', '--format', '{{.FromImageDigest}}', BASE);
  const how = ['--isolation', 'chroot', '--pull-never', '--layers', '--quiet'];
  run('buildah', ...storage, 'build', ...how, '--tag', tag, ...labels(digest), root);
  return 'buildah';
}

function labels(BASE_DIGEST: string): string[] {
  const git = (...args: string[]) => ask('git', '-C', root, ...args);
  const values = {
    VERSION,
    BRANCH: process.env.BRANCH ?? git('branch', '--show-current'),
    COMMIT: process.env.COMMIT ?? git('rev-parse', 'HEAD'),
    SOURCE: process.env.SOURCE ?? publicAddress(git('config', 'remote.origin.url')),
    BASE_DIGEST,
  };
  return Object.entries(values).flatMap(([name, value]) => ['--build-arg', `${name}=${value}`]);
}

/** A remote as a label may tell it: no path of this machine, and no credentials. */
function publicAddress(remote: string): string {
  const [, host, path] = /^(?:https?:\/\/(?:[^/@]*@)?|git@)([^/:]+)[/:](.+)$/.exec(remote) ?? [];
  return host ? `https://${host}/${path}` : '';
}

/** What the command prints; nothing where it is missing or fails. */
function ask(command: string, ...args: string[]): string {
  try {
    return execFileSync(command, args, {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  } catch {
    return '';
  }
}

function run(command: string, ...args: string[]): void {
  execFileSync(command, args, { stdio: ['ignore', 'inherit', 'inherit'] });
}

if (process.argv[1] && fileURLToPath(import.meta.url) === process.argv[1]) {
  const tag = process.argv[2] ?? `passengers:${VERSION}`;
  const builder = buildImage(tag);
  console.log(`${builder} built ${tag}`);
}
