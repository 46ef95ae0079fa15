/** One JSON line per event on stdout. A log that cannot be written never holds up the service. */
import { writeSync } from 'node:fs';
import { type Logger, pino } from 'pino';

const MAX_BUFFERED = 4 * 2 ** 20; // bytes that wait for a reader of the pipe

/** Lines that were not written, since the process started. */
export const dropped = { lines: 0 };

/** pino's own destination, sonic-boom 4.2.1, retries a failed write for ever. */
const stdout = {
  write(line: string): void {
    try {
      if (!process.stdout.writable || process.stdout.writableLength > MAX_BUFFERED) drop();
      else process.stdout.write(line);
    } catch {
      drop(); // a file is written synchronously
    }
  },
};

function drop(): void {
  dropped.lines += 1;
  if (dropped.lines === 1) say('The log cannot be written; lines are dropped.\n');
}

/** Text for a person on stderr, as far as it can be written. */
export function say(text: string): void {
  try {
    writeSync(2, text);
  } catch {} // a full disk, or a reader that is gone
}

export function openLog(level: string): Logger {
  if (!process.stdout.listeners('error').includes(drop)) process.stdout.on('error', drop);
  const formatters = { level: (name: string) => ({ level: name }) };
  return pino({ level, base: { pid: process.pid }, formatters }, stdout);
}
