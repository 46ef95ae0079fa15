/** CSV (RFC 4180): lines out, and records in for COPY. */
import { v7 as uuidv7 } from 'uuid';
import type { Resource } from './columns.ts';
import { Problem, pointer, tooLarge, toProblem } from './problem.ts';

/** One line; null is nothing, an empty text is in quotes. */
export function csvLine(values: (string | null)[]): string {
  const field = (value: string | null) =>
    value === '' || /[",\r\n]/.test(value ?? '') ? `"${value?.replaceAll('"', '""')}"` : value;
  return `${values.map(field).join(',')}\n`;
}

/** CSV for COPY: its columns, its lines as a stream, and how many passed so far. */
export type CsvReader = { columns: string[]; lines: AsyncIterable<Buffer>; rows: number };

/**
 * Reads the header, adds the owner to each row and a key where there is none. Bytes pass as latin1,
 * one character each, so that PostgreSQL checks the encoding. Throws 400 for the header, 413 past the limit.
 */
export async function readCsv(
  resource: Resource,
  bytes: AsyncIterable<Buffer>,
  limit: number,
  sub = '',
): Promise<CsvReader> {
  const batches = splitRecords(bytes, limit);
  const { value: [header = '', ...first] = [] } = await batches.next();
  const columns = readHeader(resource, Buffer.from(header, 'latin1').toString());
  const keyed = columns.includes(resource.key);
  const added = [...(resource.owner ? [resource.owner] : []), ...(keyed ? [] : [resource.key])];
  const reader = { columns: [...added, ...columns], rows: 0, lines: lines() };
  const owner = Buffer.from(csvLine([sub]).slice(0, -1)).toString('latin1');
  const prefix = resource.owner ? `${owner},` : '';
  return reader;

  async function* lines(): AsyncGenerator<Buffer> {
    yield complete(first);
    for await (const batch of batches) yield complete(batch);
  }

  function complete(records: string[]): Buffer {
    reader.rows += records.length;
    const line = (record: string) => `${prefix}${keyed ? '' : `${uuidv7()},`}${record}\n`;
    return Buffer.from(records.map(line).join(''), 'latin1');
  }
}

/** The columns of the header, by name or alias. Throws 400 unless they make whole rows. */
function readHeader(resource: Resource, header: string): string[] {
  const { key, settable, columns, required } = resource;
  const names = [key, ...settable.filter((name) => columns[name]?.type !== 'jsonb')];
  const refuse = (what: string) => {
    const hint = `It names columns: ${names.join(',')}`;
    return new Problem(400, 'PGRST204', `The header of the CSV ${what}.`, hint);
  };
  const found = header
    .replace(/^\ufeff/, '')
    .split(',')
    .map((text) => {
      const title = text.trim().replace(/^"(.*)"$/, '$1');
      const name = names.find(
        (one) => one === title || columns[one]?.csv?.split(', ').includes(title),
      );
      if (name !== undefined) return name;
      throw refuse(`has ${JSON.stringify(title.slice(0, 50))}, which is no column`);
    });
  const twice = found.filter((name, at) => found.indexOf(name) !== at);
  if (twice.length > 0) throw refuse(`has ${twice} twice`);
  const missing = required.filter((name) => !found.includes(name));
  if (missing.length > 0) throw refuse(`lacks ${missing.join(', ')}`);
  return found;
}

/** The records that each chunk completes: they end at line breaks outside of quotes. */
async function* splitRecords(
  bytes: AsyncIterable<Buffer>,
  limit: number,
): AsyncGenerator<string[]> {
  let [open, size, inQuotes] = ['', 0, false];
  for await (const chunk of bytes) {
    size += chunk.length;
    if (size > limit) throw tooLarge(limit, 'CSV');
    const [text, records]: [string, string[]] = [chunk.toString('latin1'), []];
    let start = 0;
    for (const { 0: mark, index } of text.matchAll(/["\n]/g)) {
      if (mark === '"') inQuotes = !inQuotes;
      if (mark === '"' || inQuotes) continue;
      records.push((open + text.slice(start, index)).replace(/\r$/, ''));
      [open, start] = ['', index + 1];
    }
    open += text.slice(start);
    if (records.length > 0) yield records;
  }
  if (open !== '') yield [open];
}

/** The error of COPY with line and column, counted with the header. */
export function badLine({ columns }: Resource, error: Error & { where?: string }): unknown {
  const [, line, at] = /, line (\d+)(?:, column (\w+))?/.exec(error.where ?? '') ?? [];
  if (!line) return error;
  const { status, code, message, extras } = toProblem(error);
  const failed = /"!(\w+)"/.exec(message)?.[1];
  const name = failed ?? at;
  const details = `line ${Number(line) + 1}${name ? `, column ${name}` : ''}`;
  const detail = `${details}: ${failed ? `${failed} must be ${columns[failed]?.expects}` : message}`;
  const to = name ? pointer(name) : extras.errors?.[0]?.pointer;
  const errors = to ? [{ pointer: to, detail }] : [];
  return new Problem(status, code, detail, 'Nothing was stored.', { details, errors });
}
