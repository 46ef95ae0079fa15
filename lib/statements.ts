/** The statements that write or find rows of one table, as SQL. The table is `t`, given rows are `i`. */
import type { Column, Resource, Row } from './columns.ts';
import { codeOf } from './problem.ts';
import { arrayLiteral, identifier, identifiers, join, raw, type Sql, sql, where } from './sql.ts';
import { arrayTypeOf, kindOf, textOf, typeOf } from './types.ts';

/** Versions (xmin) of If-Match and If-None-Match; `*` is any. */
export type Preconditions = { match?: Versions; noneMatch?: Versions };
type Versions = string[] | '*' | undefined;

/** PostgreSQL's transaction id of the last change: the version of a row. */
const VERSION = sql`t.xmin`;

export function statementsFor(resource: Resource) {
  const { names, settable, columns, keyMaker } = resource;
  const [table, key] = [identifier(resource.table), identifier(resource.key)];
  const keys = raw(arrayTypeOf(resource, resource.key));
  const owner = resource.owner && identifier(resource.owner);
  const deletion = sql`delete from ${table} t`;
  /** The columns that a statement has values for. */
  const inputs = [resource.key, ...settable, ...(resource.owner ? [resource.owner] : [])];

  /** The columns of which null is a value and no value means SQL. */
  const flagged = settable.filter((name) => {
    return columns[name]?.nullable && typeof columns[name]?.default === 'function';
  });

  /** The test for one key or several; an engine of several nodes asks one of them for a lone key. */
  function isKey(...given: string[]): Sql {
    if (given.length === 1) return sql`t.${key} = ${given[0]}`;
    return sql`t.${key} = any(${arrayLiteral(given)}::${keys})`;
  }

  /** The test that a row is the caller's. */
  function isOwnedBy(sub: string): Sql[] {
    return owner ? [sql`t.${owner} = ${sub}`] : [];
  }

  /** The test that each key is its caller's. */
  function areOwnedBy(given: string[], subs: string[]): Sql[] {
    const arrays = sql`${arrayLiteral(given)}::${keys}, ${arrayLiteral(subs)}::text[]`;
    return owner ? [sql`(t.${key}, t.${owner}) in (select * from unnest(${arrays}))`] : [];
  }

  function find(given: string[], shown: Sql[]): Sql {
    return sql`select ${join([...shown, VERSION])} from ${table} t where ${isKey(...given)}`;
  }

  /** Without the column of the key the database makes it, even where it always does. */
  function insert(rows: Row[]): Sql {
    const own = namesFor(rows[0], names);
    const values = own.map((name) => {
      const { generated, default: initial } = columns[name] ?? {};
      const value = sql`i.${identifier(name)}`;
      if (generated && name !== resource.key) return raw(generated());
      if (typeof initial !== 'function') return value;
      return given(name, sql`(${raw(initial())})::${raw(typeOf(resource, name))}`);
    });
    const overriding = keyMaker === 'database' ? sql`overriding system value` : sql``;
    return sql`insert into ${table} as t (${identifiers(own)}) ${overriding}
      select ${join(values)} from ${tableOf(namesFor(rows[0], inputs), rows, flagged)}`;
  }

  /** The value of a row for a column with SQL for a default, or `other` where the row has none. */
  function given(name: string, other: Sql): Sql {
    const value = sql`i.${identifier(name)}`;
    if (!flagged.includes(name)) return sql`coalesce(${value}, ${other})`;
    return sql`case when i.${identifier(`has ${name}`)} then ${value} else ${other} end`;
  }

  /** Of these columns those that rows like this one have; the key is in all of them, or in none. */
  function namesFor(row: Row = {}, some: string[]): string[] {
    return some.filter((name) => name !== resource.key || row[name] !== undefined);
  }

  /** Inserts rows; where `on` exists, sets `set`: never the key, nothing in another caller's row. */
  function upsert(rows: Row[], set: string[], tests: Sql[] = [], on = [resource.key]): Sql {
    const changed = set.filter((name) => settable.includes(name)).map(identifier);
    const mine = owner ? [sql`t.${owner} = excluded.${owner}`] : [];
    const changes = join(changed.map((name) => sql`${name} = excluded.${name}`));
    const update = sql`update set ${changes} ${where([...mine, ...tests])}`;
    const action = changed.length > 0 ? update : sql`nothing`;
    return sql`${insert(rows)} on conflict (${identifiers(on)}) do ${action}`;
  }

  /** Sets what the part has; a whole row also sets the rest to its defaults. */
  function update(part: Row, whole = false): Sql {
    const set = settable.flatMap((name) => {
      const { default: initial } = columns[name] ?? {};
      const preset = whole && typeof initial === 'function' ? [raw(initial())] : [];
      const value = Object.hasOwn(part, name) ? [textFor(name, part[name])] : preset;
      return value.map((one) => sql`${identifier(name)} = ${one}`);
    });
    return assign(set);
  }

  /** Sets in each row what its part has; `isSame` finds the part by key. */
  function updateEach(parts: Row[]): { action: Sql; isSame: Sql } {
    const having = (name: string) => parts.filter((part) => Object.hasOwn(part, name)).length;
    const named = settable.filter((name) => having(name) > 0);
    const partial = named.filter((name) => having(name) < parts.length);
    const set = named.map((name) => {
      const [column, has] = [identifier(name), identifier(`has ${name}`)];
      if (!partial.includes(name)) return sql`${column} = i.${column}`;
      return sql`${column} = case when i.${has} then i.${column} else t.${column} end`;
    });
    const given = tableOf([resource.key, ...named], parts, partial);
    return { action: sql`${assign(set)} from ${given}`, isSame: sql`t.${key} = i.${key}` };
  }

  /** Without an assignment, only the version of the row changes. */
  function assign(set: Sql[]): Sql {
    const first = identifier(settable[0] ?? '');
    return sql`update ${table} t set ${set.length > 0 ? join(set) : sql`${first} = t.${first}`}`;
  }

  /** The existing rows with the keys of the given ones, and whether they are equal. */
  function compare(rows: Row[], shown: Sql[]): Sql {
    const wanted = settable.map((name) => {
      const [byDatabase, column] = [typeof columns[name]?.default === 'function', identifier(name)];
      return byDatabase ? given(name, sql`t.${column}`) : sql`i.${column}`;
    });
    const same = sql`row(${identifiers(settable, 't.')}) is not distinct from row(${join(wanted)})`;
    return sql`select ${join([...shown, VERSION, same])}
      from ${table} t join ${tableOf(inputs, rows, flagged)} on t.${key} = i.${key}`;
  }

  /** Rows as a table `i`: an array for each column, of a type without a length, which would truncate. */
  function tableOf(names: string[], rows: Row[], partial: string[] = []): Sql {
    const arrays = names.map((name) => {
      const values = rows.map((row) => textFor(name, row[name]));
      const type = isArray(name) ? 'text[]' : arrayTypeOf(resource, name);
      return sql`${arrayLiteral(values)}::${raw(type)}`;
    });
    const has = (name: string) => arrayLiteral(rows.map((row) => Object.hasOwn(row, name)));
    const flags = partial.map((name) => sql`${has(name)}::boolean[]`);
    const all = identifiers([...names, ...partial.map((name) => `has ${name}`)]);
    const given = sql`unnest(${join([...arrays, ...flags])}) i(${all})`;
    const casts = names.filter(isArray).map((name) => {
      const column = identifier(name);
      return sql`, i.${column}::${raw(typeOf(resource, name))} as ${column}`;
    });
    if (casts.length === 0) return given;
    const plain = [
      ...names.filter((name) => !isArray(name)),
      ...partial.map((name) => `has ${name}`),
    ];
    return sql`(select ${identifiers(plain, 'i.')}${join(casts, '')} from ${given}) i`;
  }

  /** unnest() would take an array of arrays apart: an array is given as text. */
  function isArray(name: string): boolean {
    return kindOf(typeOf(resource, name)) === 'array';
  }

  function textFor(name: string, value: unknown): string | null {
    return textOf(columns[name] as Column, value);
  }

  const tests = { isKey, isOwnedBy, areOwnedBy };
  const writes = { deletion, insert, upsert, update, updateEach };
  return { table, key, inputs, namesFor, ...tests, find, ...writes, compare, textFor };
}

export function hasVersion({ match, noneMatch }: Preconditions): Sql[] {
  const tests = noneMatch === '*' ? [sql`false`] : [];
  if (Array.isArray(match)) tests.push(sql`t.xmin::text = any(${arrayLiteral(match)}::text[])`);
  if (Array.isArray(noneMatch))
    tests.push(sql`t.xmin::text <> all(${arrayLiteral(noneMatch)}::text[])`);
  return tests;
}

/** A write that answers columns, version and `created`; if one of `broken` is true, 1 / 0 undoes it. */
export function returning(action: Sql, shown: Sql[], created = sql`false`, broken: Sql[] = []) {
  const columns = [...shown, VERSION, created];
  if (broken.length === 0) return sql`${action} returning ${join(columns)}`;
  const named = columns.map((one, at) => sql`${one} as ${identifier(`c${at}`)}`);
  return sql`with changed as (${action} returning ${join(named)})
    select *, 1 / (case when ${join(broken, ' or ')} then 0 else 1 end) from changed`;
}

/** For catch(): no result where one of `broken` was true; no other statement divides. */
export function ifBroken(error: unknown): undefined {
  if (codeOf(error) !== '22012') throw error;
}

/** What must not be true of the changed rows: not exactly one, or more than `most`. */
export function brokenBy(single: boolean, most = Infinity): Sql[] {
  const rows = sql`(select count(*) from changed)`;
  const tests = single ? [sql`${rows} <> 1`] : [];
  return most === Infinity ? tests : [...tests, sql`${rows} > ${most}`];
}
