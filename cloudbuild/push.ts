/**
 * Pushes the image and remembers its digest, by which the following steps name it.
 *
 *     npm run push -- IMAGE:TAG
 */
import { inspect, run, step, writeImage } from './commands.ts';

step(([image = '']) => {
  run('docker', ['push', image]);
  const { digest } = inspect(image);
  writeImage(image.replace(/:[^:/]*$/, `@${digest}`));
  console.log(`pushed ${image} as ${digest}`);
});
