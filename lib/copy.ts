/** COPY … FROM STDIN over postgres.js, whose own writable() loses errors. */
import { Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type postgres from 'postgres';
import { DEADLINE } from './config.ts';
import { tooSlow } from './problem.ts';

/** What postgres 3.4.9 calls when the server is ready for the data, and when it refuses them. */
type Query = postgres.PendingQuery<postgres.Row[]> & {
  resolve?: (stream: Writable) => void;
  reject?: (error: unknown) => void;
};

/**
 * Sends the bytes at the pace of the server; all of them or nothing is stored. Throws PostgreSQL's
 * error, or Problem 504 when the server takes longer than DEADLINE for one piece; the caller may be slow.
 *
 * postgres 3.4.9 reports an error after the last byte to the query alone, fails the stream before
 * anybody has it when the error comes early, and writes until the stream is closed.
 */
export async function copyFrom(
  driver: postgres.Sql,
  statement: string,
  bytes: AsyncIterable<Buffer>,
): Promise<void> {
  const query: Query = driver.unsafe(statement);
  let closed: Promise<unknown> | undefined;
  const refused = new Promise<never>((_, reject) => {
    query.reject = reject;
  });
  const opened = new Promise<Writable>((resolve) => {
    query.resolve = (stream) => {
      closed ??= new Promise((close) => stream.on('error', () => {}).once('close', close));
      resolve(stream);
    };
  });
  let timer: NodeJS.Timeout | undefined;
  const startTimer = () => {
    timer = setTimeout(() => query.reject?.(tooSlow()), DEADLINE);
  };
  const pieces = async function* timed() {
    for await (const piece of bytes) {
      startTimer();
      yield piece;
      clearTimeout(timer); // the server took it: now the client is waited for
    }
    startTimer();
  };
  startTimer();
  void query.writable();
  const writable = await Promise.race([opened, refused]).finally(() => clearTimeout(timer));
  await Promise.race([refused, pipeline(Readable.from(pieces()), writable)]).finally(() => {
    clearTimeout(timer);
    writable.destroy();
    return closed;
  });
}
