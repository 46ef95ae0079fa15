/** COPY … FROM STDIN over postgres.js, whose own writable() loses errors. */
import { Readable, Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type postgres from 'postgres';
import { DEADLINE } from './config.ts';
import { tooSlow } from './problem.ts';

/** postgres 3.4.9 resolves with a stream when the server is ready for the data, and with the result. */
type Query = postgres.PendingQuery<postgres.Row[]> & {
  resolve?: (result: unknown) => void;
  reject?: (error: unknown) => void;
};

/**
 * Sends the bytes at the pace of the server; all of them or nothing is stored. Throws PostgreSQL's
 * error, or Problem 504 when the server takes longer than DEADLINE for one piece; the caller may be slow.
 *
 * postgres 3.4.9 reports an error after the last byte to the query alone, and fails the stream before
 * a caller has it when the error comes early.
 */
export async function copyFrom(
  driver: postgres.Sql,
  statement: string,
  bytes: AsyncIterable<Buffer>,
): Promise<void> {
  const query: Query = driver.unsafe(statement);
  const refused = new Promise<never>((_, reject) => {
    query.reject = reject;
  });
  const opened = new Promise<Writable>((resolve) => {
    query.resolve = (result) => {
      if (result instanceof Writable) resolve(result.on('error', () => {}));
    };
  });
  let timer: NodeJS.Timeout | undefined;
  const startTimer = () => {
    timer = setTimeout(() => query.reject?.(tooSlow()), DEADLINE);
  };
  const pieces = async function* timed() {
    clearTimeout(timer);
    for await (const piece of bytes) {
      startTimer();
      yield piece;
      clearTimeout(timer); // the server took it: now the client is waited for
    }
    startTimer();
  };
  startTimer();
  void query.writable();
  try {
    const writable = await Promise.race([opened, refused]);
    await Promise.race([refused, pipeline(Readable.from(pieces()), writable)]);
  } finally {
    clearTimeout(timer);
  }
}
