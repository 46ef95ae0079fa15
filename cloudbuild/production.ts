/**
 * The steps of cloudbuild/production.yaml that no other pipeline has.
 *
 *     npm run verify           the published image is the one that was tested
 *     npm run routes -- FILE   writes down the gateway's routes, as they are before the change
 *     npm run mark             the branch `production` is this commit now
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { ask, commitOf, git, given, imageOf, inspect, step, writeImage } from './commands.ts';

step(([command, file]) => {
  if (command === 'verify') return verify();
  if (command === 'routes' && file) return writeRoutes(file);
  if (command === 'mark') return mark();
  throw new Error('expected verify, routes FILE or mark');
});

/**
 * Only what passed acceptance has a tag without .dev, so the digest has to be that of both tags,
 * made from the commit that the tag says, and the one in install/passengers.yaml.
 */
function verify(): void {
  const { name, tag, digest } = imageOf('production');
  for (const one of [tag, `${tag}.dev`]) {
    const found = inspect(`${name}:${one}`);
    if (found.digest !== digest)
      throw new Error(`expected ${digest} at ${name}:${one}, found ${found.digest}`);
  }
  const { 'org.opencontainers.image.revision': revision = 'nothing' } = inspect(
    `${name}:${tag}`,
  ).labels;
  if (!revision.startsWith(commitOf(tag) ?? '-'))
    throw new Error(`expected ${tag} to be made from the commit in it, not from ${revision}`);
  if (!readFileSync('install/passengers.yaml', 'utf8').includes(`${name}:${tag}@${digest}`))
    throw new Error(`expected ${name}:${tag}@${digest} in install/passengers.yaml`);
  writeImage(`${name}@${digest}`);
  console.log(`${tag} is ${digest}, as tested`);
}

/** Those kinds that the cluster has; which gateway it runs is its own affair. */
function writeRoutes(file: string): void {
  const all = ask('kubectl', ['api-resources', '--verbs=list', '--output=name']).split('\n');
  const kinds = all.filter((name) => /^(ingresses\.networking|httproutes|kong\w+)\./.test(name));
  const how = ['--all-namespaces', '--output=yaml', '--ignore-not-found'];
  const routes = ask('kubectl', ['get', kinds.join(), ...how]);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, `${routes}\n`);
}

/** Forced, since going back to an older commit is a deployment too. */
function mark(): void {
  const commit = given('COMMIT');
  git(['push', '--force', 'origin', `${commit}:refs/heads/production`]);
  console.log(`production is ${commit}`);
}
