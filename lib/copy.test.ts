import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import postgres from 'postgres';
import { startDatabase, type TestDatabase } from '../test/harness.ts';
import { copyFrom } from './copy.ts';

let database: TestDatabase;
before(async () => {
  database = await startDatabase();
  await database.sql.unsafe(`create table things (n int primary key);
    create function refuse() returns trigger language plpgsql as $$ begin raise 'no'; end $$;
    create table refusing (n int);
    create trigger refuse before insert on refusing execute function refuse()`);
});
after(() => database?.stop());

/** Copies into a table on a connection of its own. */
async function copy(table: string, bytes: AsyncIterable<Buffer>): Promise<void> {
  const driver = postgres(database.url, { max: 1, fetch_types: false });
  await copyFrom(driver, `copy ${table} from stdin (format csv)`, bytes).finally(() =>
    driver.end({ timeout: 0 }),
  );
}

async function* pieces(...texts: string[]) {
  for (const text of texts) yield Buffer.from(text);
}

async function* failing(text: string) {
  yield Buffer.from(text);
  throw Object.assign(new Error('cut off'), { code: 'ECONNRESET' });
}

/** A client that sends nothing more until the test is over. */
async function* endless(text: string) {
  yield Buffer.from(text);
  await new Promise((resolve) => setTimeout(resolve, 10_000).unref());
}

test('copyFrom() stores all lines', async () => {
  await copy('things', pieces('1\n2', '3\n', '4'));
  assert.deepEqual([...(await database.sql`select n from things`.values()).flat()], [1, 23, 4]);
});

const refused: [name: string, table: string, bytes: () => AsyncIterable<Buffer>, code: string][] = [
  ['as the statement begins', 'refusing', () => pieces('1\n'), 'P0001'],
  ['as the statement begins, while the client pauses', 'refusing', () => endless('1\n'), 'P0001'],
  ['before it begins', 'missing', () => pieces('1\n'), '42P01'],
  ['in the middle, while the client pauses', 'things', () => endless('5\nx\n'), '22P02'],
  ['or of its source', 'things', () => failing('5\n6\n'), 'ECONNRESET'],
  ['by the last line', 'things', () => pieces('6\n', '1'), '23505'],
];
for (const [name, table, bytes, code] of refused) {
  test(`copyFrom() rejects with the error of PostgreSQL ${name}, and stores nothing`, async () => {
    await assert.rejects(copy(table, bytes()), { code });
    assert.equal((await database.sql`select from things where n in (5, 6)`).length, 0);
  });
}
