/** Makes the table of a resource, or checks it. */
import type { Column, Resource } from './columns.ts';
import { ownCall, type Pool } from './pool.ts';
import { codeOf, StartError } from './problem.ts';
import { literal, quote, Sql, sql } from './sql.ts';
import { kindFor, textOf } from './types.ts';

/** A column of the table; `uniques` are the columns of each unique index that it is in. */
type Existing = { name: string; type: string; uniques: string[][] | null } & Record<
  'referring' | 'required' | 'notNull',
  boolean
>;

/** A difference between declaration and table, and the SQL that removes it; `adds` nothing but what is missing. */
type Difference = { fault: string; ddl: string; adds?: boolean };

/**
 * Creates the table or its missing columns under an advisory lock; issues no DDL when nothing is
 * missing. Throws StartError with the SQL for all differences, Problem while the database is unavailable.
 */
export async function ensureTable(resource: Resource, pool: Pool): Promise<void> {
  const { table, notNull } = resource;
  for (const altered of [false, true]) {
    const found = (await pool.json(describeTable(table))) as Existing[];
    for (const column of found) if (column.notNull) notNull.add(column.name);
    const differences = compareTable(resource, found);
    if (differences.length === 0) return;
    if (altered || !differences.every(({ adds }) => adds)) throw refusal(table, differences);
    const lock = `select pg_advisory_xact_lock(hashtext(${literal(table)}))`;
    const batch = [lock, ...differences.map(({ ddl }) => ddl)].join('; '); // one transaction
    await pool.run('write', ownCall(), new Sql(batch)).catch((error) => {
      // No right to it, a missing table or unique column to refer to, or one of another type
      if (!/^(42501|42P01|42830|42703|42804)$/.test(codeOf(error))) throw error;
      const refused = differences.map((one) => ({ ...one, adds: false }));
      throw refusal(table, refused, `; the database says: ${error.message}`);
    });
  }
}

/** One statement a line, to be pasted; a comment marks those that the service does not run. */
function refusal(table: string, differences: Difference[], why = ''): StartError {
  const lines = differences.map(({ ddl, fault, adds }) => {
    return `${ddl}; -- ${adds ? 'the service runs this' : 'blocks the start'}: ${fault}`;
  });
  const head = `table ${table} is not as declared${why}. Change the declaration, or run:`;
  return new StartError([head, ...lines].join('\n'));
}

function describeTable(table: string): Sql {
  return sql`
    select attname as name, format_type(atttypid, atttypmod) as type, (
      select json_agg((
        select json_agg(attname) from pg_attribute where attrelid = indrelid and attnum = any(indkey)
      )) from pg_index
      where indrelid = t.attrelid and t.attnum = any(indkey)
        and indisunique and indpred is null and 0 <> all(indkey)
    ) as uniques, exists (
      select from pg_constraint where conrelid = attrelid and contype = 'f' and conkey = array[attnum]
    ) as referring, attnotnull and not atthasdef and attidentity = '' as required,
      attnotnull as "notNull"
    from pg_attribute t
    where attrelid = to_regclass(${quote(table)}) and attnum > 0 and not attisdropped`;
}

function compareTable(resource: Resource, found: Existing[]): Difference[] {
  const { table, key, names, columns, uniques, keyMaker } = resource;
  const alter = `alter table ${quote(table)}`;
  const quoted = (some: string[]) => `(${some.map(quote).join(', ')})`;
  const several = uniques.filter((some) => some.length > 1);
  if (found.length === 0) {
    const isKey = (name: string) => (name === key ? ' primary key' : '');
    const all = Object.entries(columns).map(([name, one]) => define(name, one) + isKey(name));
    const lines = [...all, ...several.map((some) => `unique ${quoted(some)}`)].join(', ');
    const create = `create table if not exists ${quote(table)} (${lines})`;
    return [{ fault: 'is missing', ddl: create, adds: true }];
  }
  const existing = new Map(found.map((one) => [one.name, one]));
  const missing = uniques.filter((some) => {
    const indexes = existing.get(some[0] ?? '')?.uniques ?? [];
    const isUnique = indexes.some((one) => String(one.sort()) === String(some.toSorted()));
    return !isUnique && some.every((one) => existing.has(one));
  });
  const undeclared = found.filter(({ name, required }) => {
    return required && (!names.includes(name) || (name === key && keyMaker === 'database'));
  });
  return [
    ...Object.entries(columns).flatMap(([name, column]) =>
      compareColumn(alter, name, column, existing.get(name)),
    ),
    ...missing.map((some): Difference => {
      const index = `${String(some) === key ? 'primary key' : 'unique'} ${quoted(some)}`;
      return { fault: `${some} has no unique index`, ddl: `${alter} add ${index}` };
    }),
    ...Object.entries(columns).flatMap(([name, { references }]): Difference[] => {
      if (!references || existing.get(name)?.referring !== false) return [];
      const add = `${alter} add foreign key (${quote(name)})${refer(references)}`;
      return [{ fault: `${name} is no foreign key`, ddl: add }];
    }),
    ...undeclared.map(({ name }) => {
      const change = `${alter} alter column ${quote(name)}`;
      const fault = `${name} is required by the table, not declared`;
      if (name !== key) return { fault, ddl: `${change} drop not null` };
      return { fault: `${name} has no default`, ddl: `${change} add generated always as identity` };
    }),
  ];
}

function compareColumn(
  alter: string,
  name: string,
  column: Column,
  existing?: Existing,
): Difference[] {
  const { type, nullable, generated, default: initial } = column;
  if (!existing) {
    const adds = Boolean(nullable || generated || initial !== undefined); // rows get a value
    const why = adds ? '' : ', without default or nullable';
    const ddl = `${alter} add column if not exists ${define(name, column)}`;
    return [{ fault: `${name} is missing${why}`, ddl, adds }];
  }
  const [place, kind] = [quote(name), kindFor(existing.type)];
  const right = kind ? `${kind} fits` : 'there is no kind for it';
  const fault = `${name} is ${existing.type}, declared ${type}; ${right}`;
  const ddl = `${alter} alter column ${place} type ${type} using ${place}::${type}`;
  return isWithin(type, existing.type) ? [] : [{ fault, ddl }];
}

/** Whether an existing type has the values of the declared one: the same, or a text as long. */
function isWithin(declared: string, existing: string): boolean {
  const read = (type: string) => /^(?:text|character varying(?:\((\d+)\))?)(\[\])?$/.exec(type);
  const [inner, outer] = [read(declared), read(existing)];
  if (!inner || !outer) return declared === existing;
  return inner[2] === outer[2] && Number(inner[1] ?? Infinity) <= Number(outer[1] ?? Infinity);
}

/** The column in `create table` and `alter table`. */
function define(name: string, column: Column): string {
  const { type, nullable, unique, generated, default: initial = generated } = column;
  const text = textOf(column, initial);
  const value = typeof initial === 'function' ? initial() : text === null ? 'null' : literal(text);
  const rule = column.constraint(quote(name));
  const target = column.references;
  return [
    `${quote(name)} ${type}`,
    nullable ? '' : ' not null',
    initial === undefined ? '' : ` default ${value}`,
    column.identity ? ' generated always as identity' : '',
    unique ? ' unique' : '',
    rule && ` check (${rule})`,
    target ? refer(target) : '',
  ].join('');
}

function refer({ table, column }: NonNullable<Column['references']>): string {
  return ` references ${quote(table)} (${quote(column)})`;
}
