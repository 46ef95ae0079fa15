/**
 * Gives the tested image the tag that people use. Nothing is built again: it is the same digest.
 * By a second tag, release-TAG, cleanup-policy.json knows what to keep; it cannot see an ending.
 *
 *     npm run promote -- IMAGE:TAG
 */
import { ask, inspect, readImage, step } from './commands.ts';

step(([image = '']) => {
  const tested = readImage();
  for (const name of [image, image.replace(/:([^:/]*)$/, ':release-$1')]) {
    ask('skopeo', ['copy', '--preserve-digests', `docker://${tested}`, `docker://${name}`]);
    const { digest } = inspect(name);
    if (!tested.endsWith(`@${digest}`)) throw new Error(`expected ${tested} at ${name}: ${digest}`);
    console.log(`${name} is ${digest}`);
  }
});
