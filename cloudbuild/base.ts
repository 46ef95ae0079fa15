/**
 * Whether there is anything to build: ends the build where neither the code nor the base image
 * changed since the published image, as in most of the hourly runs.
 *
 *     npm run base -- IMAGE       BUILD_ID and LOCATION of the build in the environment
 *
 * This is also what stops a loop: the pipeline's own commit changes nothing that goes into an image.
 */
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { git, given, imageOf, inspect, run, step } from './commands.ts';

/** What publish.ts writes, and what no image is made of. */
const PUBLISHED = [':!install', ':!kustomize/overlays', ':!*.md'];

step(async ([image = '']) => {
  const reasons = changes(image);
  for (const reason of reasons) console.log(`build: ${reason}`);
  if (reasons.length > 0) return;
  console.log('neither the code nor the base image changed: nothing to do');
  run('gcloud', ['builds', 'cancel', given('BUILD_ID'), `--region=${given('LOCATION')}`]);
  await sleep(600_000); // until the cancellation ends this
  throw new Error('expected this build to be cancelled');
});

function changes(image: string): string[] {
  const { name, tag, digest } = imageOf('install');
  if (name !== image || digest === '') return [`install/ names no digest of ${image} yet`];
  const { labels } = inspect(`${name}:${tag}@${digest}`);
  const base = inspect(baseName());
  const reasons = [];
  if (labels['org.opencontainers.image.base.digest'] !== base.digest)
    reasons.push(`the base image is ${base.digest} now`);
  if (isCodeChanged(labels['org.opencontainers.image.revision'] ?? ''))
    reasons.push(`the code changed since ${tag}`);
  return reasons;
}

/** The image that the last stage of the Dockerfile starts from. */
function baseName(): string {
  const [, base] = /^FROM (\S+)(?![\s\S]*^FROM )/m.exec(readFileSync('Dockerfile', 'utf8')) ?? [];
  if (!base) throw new Error('expected FROM in the Dockerfile');
  return base;
}

/** The checkout has this commit alone, so that the other is fetched; who cannot tell, builds. */
function isCodeChanged(revision: string): boolean {
  try {
    git(['fetch', '--quiet', '--depth=1', 'origin', revision]);
    git(['diff', '--quiet', revision, 'HEAD', '--', '.', ...PUBLISHED]);
    return false;
  } catch {
    return true;
  }
}
