/** The statements on one table; requests that arrive together share one. */
import { kindOf, type Resource, type Row, typeOf } from './columns.ts';
import type { Filter, Member, Query } from './dialect.ts';
import { type Grouping, group, share } from './group.ts';
import { CSV, OBJECT } from './headers.ts';
import { type Call, FETCH, type Kind, ownCall, type Pool, type Result } from './pool.ts';
import { clientLeft, codeOf, notOne, Problem, preconditionFailed, tooMany } from './problem.ts';
import {
  bodyOf,
  csvLine,
  type Format,
  headerOf,
  jsonWriter,
  rowWriter,
  type Values,
} from './rows.ts';
import {
  condition,
  countOf,
  cursorColumns,
  cursorOf,
  type Shown,
  selectOf,
  shownOf,
} from './select.ts';
import {
  arrayLiteral,
  identifier,
  identifiers,
  join,
  quote,
  raw,
  type Sql,
  sql,
  toText,
  where,
} from './sql.ts';

/** A row as JSON, with its version in the database (xmin) for the ETag. */
export type Stored = { body: string; version: string };

/**
 * What a write did to how many rows, and those in the wanted format. `created`: some are new.
 * `same`: a create found its keys taken by rows that equal the wanted ones.
 */
export type Written = Stored & { rows: number; created: boolean; same: boolean };

type Versions = string[] | '*' | undefined;

/** Versions of If-Match and If-None-Match; `*` is any. */
export type Preconditions = { match?: Versions; noneMatch?: Versions };

/** How a write answers its rows, without `format` not at all; it changes nothing unless `most` is kept. */
export type Terms = Preconditions & {
  format?: Format | undefined;
  select?: Member[] | undefined;
  most?: number | undefined;
};

/** A page of at most `limit` rows; `count`: whether the number of all rows is wanted. */
export type Wanted = { limit: number; count: boolean; format: Format };

/** One page of a list in the wanted format: whether more rows follow, and the cursor to them. */
export type Page = { rows: number; body: string; more: boolean; next: string; total?: number };

/** All rows of a list, in batches of texts. `rows` is known when the first batch is the last. */
export type Batches = {
  total?: number;
  first: string[];
  rest: AsyncIterable<string[]>;
  close: () => void;
  rows?: number;
};

/** A request for one row, and one for a page. */
type Ask = { key: string; call: Call; row: Row };
type PageAsk = { query: Query; wanted: Wanted; shown: Shown; statement: Sql; call: Call };

const GROUPS = { most: 128, width: 2 };
const VERSION = sql`t.xmin`;
const DIVISION_BY_ZERO = '22012'; // no statement divides but to refuse its own effect
/** SQLSTATE classes of errors that one row of a group may cause, and that undo the statement. */
const ONE_ROW = /^(2[^58]|4|55)/;

export class Store {
  private resource: Resource;
  private pool: Pool;
  private table: Sql;
  private key: Sql;
  private keyType: Sql;
  private inputs: string[]; // columns that have a value in the statement
  private shown: Shown;
  private toJson: (values: Values) => string;
  private reads = this.together('read', (asks: Ask[], since) => this.readAll(asks, since));
  private creates = this.together('create', (asks: Ask[], since) => this.createAll(asks, since));
  private replaces = this.together('replace', (asks: Ask[], since) => this.replaceAll(asks, since));
  private removes = this.together('delete', (asks: Ask[], since) => this.removeAll(asks, since));
  private pages = share(
    this.grouping('list', (asks: PageAsk[], since) => this.readPages(asks, since)),
  );

  constructor(resource: Resource, pool: Pool) {
    const { key, owner, settable } = resource;
    this.resource = resource;
    this.pool = pool;
    this.table = identifier(resource.table);
    this.key = identifier(key);
    this.keyType = raw(typeOf(resource, key));
    this.inputs = [key, ...settable, ...(owner ? [owner] : [])];
    this.shown = shownOf(resource);
    this.toJson = jsonWriter(this.shown.fields);
  }

  // Reads

  read(key: string, call: Call): Promise<Stored | undefined> {
    return this.admit(call, () => this.reads({ key, call, row: {} }));
  }

  /** One page. Equal ones that are requested at the same time share one statement. */
  page(query: Query, wanted: Wanted, call: Call): Promise<Page> {
    const shown = shownOf(this.resource, query.select);
    const statement = this.pageStatement(query, wanted, shown, call);
    const key = wanted.format + statement.text + JSON.stringify(statement.values);
    return this.admit(call, () => this.pages(key, { query, wanted, shown, statement, call }));
  }

  /** All rows of a list, streamed at constant memory. Throws 416 past a counted end. */
  async stream(
    query: Query,
    { count, format }: Omit<Wanted, 'limit'>,
    call: Call,
  ): Promise<Batches> {
    this.checkCaller(call);
    const { resource } = this;
    const tests = this.ownedBy(call);
    const { fields, columns } = shownOf(resource, query.select);
    const statement = selectOf(resource, query, columns, tests, query.limit);
    const counting = count ? countOf(resource, query, tests) : undefined;
    const batches = this.pool.stream(statement, counting);
    const total = count ? Number((await batches.next()).value?.[0]?.[0]) : undefined;
    const { value: rows = [] } = await batches.next();
    const write = rowWriter(format, fields);
    const header = format === CSV ? [headerOf(fields)] : [];
    const isAll = rows.length < FETCH;
    return {
      first: [...header, ...rows.map(write)],
      rest: mapBatches(batches, write),
      close: () => void batches.return(undefined),
      ...(isAll && { rows: rows.length }),
      ...(total !== undefined && { total }),
    };
  }

  // Writes

  /** Inserts the row, or compares it with the one that has its key; 0 rows: that is another caller's. */
  create(row: Row, call: Call): Promise<Written> {
    const ask = this.askFor(row, call);
    return this.admit(call, async () => {
      for (let tries = 3; tries > 0; tries -= 1) {
        const made = await this.creates(ask);
        if (made.rows > 0) return made;
        const [found] = await this.compare([ask]); // none: it was deleted meanwhile
        if (found) return found;
      }
      return writtenOf([], '');
    });
  }

  /** Inserts the row, or replaces the one with its key; 0 rows: that is another caller's. */
  async replace(row: Row, terms: Preconditions, call: Call): Promise<Written> {
    const { match, noneMatch } = terms;
    const ask = this.askFor(row, call);
    if (!match && !noneMatch) return this.admit(call, () => this.replaces(ask));
    const { key, settable } = this.resource;
    const others = Array.isArray(noneMatch) ? this.versionTests({ noneMatch }) : [];
    const conflict = this.onConflict([key], noneMatch === '*' ? [] : settable, others);
    const options = { created: sql`t.xmax = 0` };
    const made = match
      ? await this.merge(ask.key, row, terms, call)
      : await this.write(
          'write',
          sql`${this.insert([ask])} ${conflict}`,
          options,
          { format: OBJECT },
          call,
        );
    if (made.rows === 0) throw preconditionFailed();
    return made;
  }

  /** Inserts all rows, or none when a key exists: then `created` is false, and `same` compares. */
  async createMany(rows: Row[], terms: Terms, call: Call): Promise<Written> {
    if (terms.format === OBJECT && rows.length !== 1) throw notOne(rows.length);
    if (rows.length > (terms.most ?? rows.length)) throw tooMany(rows.length);
    const asks = rows.map((row) => this.askFor(row, call));
    try {
      const made = await this.write('keyed', this.insert(asks), {}, terms, call);
      return { ...made, created: true };
    } catch (error) {
      const found = codeOf(error) === '23505' ? await this.compare(asks) : [];
      if (found.length === 0) throw error; // another unique column is taken
      const same = found.length === rows.length && found.every((one) => one.same);
      const body = `[${found.map((one) => one.body)}]`;
      return { rows: found.length, body, version: found[0]?.version ?? '', created: false, same };
    }
  }

  /** Inserts rows; where the `target` columns are taken, sets the `set` columns, or nothing. */
  upsert(rows: Row[], target: string[], set: string[], terms: Terms, call: Call) {
    const asks = rows.map((row) => this.askFor(row, call));
    const action = sql`${this.insert(asks)} ${this.onConflict(target, set)}`;
    const { format, most } = terms;
    const broken = this.broken(format === OBJECT, most);
    return this.write('write', action, { created: sql`t.xmax = 0`, broken }, terms, call);
  }

  /** Sets what the part has, in the statement itself (RFC 7396). */
  merge(key: string, part: Row, terms: Preconditions, call: Call): Promise<Written> {
    return this.change(this.update(part), [sql`t.${this.key} = ${key}`], terms, call, true);
  }

  /** Sets the same part in every row that passes the filters. */
  mergeMany(part: Row, filters: Filter[], terms: Terms, call: Call): Promise<Written> {
    return this.change(this.update(part), filters.map(condition), terms, call);
  }

  /** Sets in each of the given rows, found by its key, what it has. */
  mergeRows(parts: Row[], filters: Filter[], terms: Terms, call: Call): Promise<Written> {
    const { key, settable } = this.resource;
    const named = settable.filter((name) => parts.some((part) => Object.hasOwn(part, name)));
    const has = (name: string) => parts.map((part) => Object.hasOwn(part, name));
    const partial = named.filter((name) => has(name).includes(false));
    const set = named.map((name) => {
      const [column, given] = [identifier(name), identifier(`has ${name}`)];
      if (!partial.includes(name)) return sql`${column} = i.${column}`;
      return sql`${column} = case when i.${given} then i.${column} else t.${column} end`;
    });
    const flags = partial.map((name) => sql`${arrayLiteral(has(name))}::boolean[]`);
    const arrays = [...this.arraysOf([key, ...named], parts), ...flags];
    const columns = identifiers([key, ...named, ...partial.map((name) => `has ${name}`)]);
    const from = sql`from unnest(${join(arrays)}) i(${columns})`;
    const tests = [sql`t.${this.key} = i.${this.key}`, ...filters.map(condition)];
    return this.change(sql`${this.assign(set)} ${from}`, tests, terms, call);
  }

  remove(key: string, terms: Preconditions, call: Call): Promise<Written> {
    if (!Array.isArray(terms.match) && !terms.noneMatch)
      return this.admit(call, () => this.removes({ key, call, row: {} }));
    return this.change(this.deletion(), [sql`t.${this.key} = ${key}`], terms, call, true);
  }

  removeMany(filters: Filter[], terms: Terms, call: Call): Promise<Written> {
    return this.change(this.deletion(), filters.map(condition), terms, call);
  }

  /** Stores all rows, or none, at constant memory. */
  async copy(batches: AsyncIterable<Row[]>, call: Call): Promise<void> {
    this.checkCaller(call);
    const { inputs } = this;
    const lineOf = ({ row }: Ask) =>
      `${csvLine(inputs.map((name) => this.toText(name, row[name])))}\n`;
    const store = this;
    async function* lines() {
      for await (const rows of batches)
        yield Buffer.from(rows.map((row) => lineOf(store.askFor(row, call))).join(''));
    }
    const into = sql`copy ${this.table} (${identifiers(inputs)}) from stdin (format csv)`;
    await this.pool.copy(into.text, lines());
  }

  // Owners

  /** Counts the request; throws 403 for a caller who cannot own rows. */
  private admit<T>(call: Call, answer: () => Promise<T>): Promise<T> {
    this.checkCaller(call);
    return this.pool.admit(call, answer);
  }

  private checkCaller({ sub }: Call): void {
    const { owner = '', columns } = this.resource;
    const pattern = columns[owner]?.owner;
    const hint = `The sub of the token has to match ${pattern?.source}.`;
    if (pattern && !pattern.test(sub))
      throw new Problem(403, '42501', "The token's sub cannot own rows.", hint);
  }

  /** The row with its caller as owner; a body cannot name one. */
  private askFor(row: Row, call: Call): Ask {
    const { key, owner } = this.resource;
    return { key: String(row[key]), row: owner ? { ...row, [owner]: call.sub } : row, call };
  }

  /** The test that a row belongs to the caller. */
  private ownedBy({ sub }: Call): Sql[] {
    const { owner } = this.resource;
    return owner ? [sql`t.${identifier(owner)} = ${sub}`] : [];
  }

  // Groups

  private together<O>(work: string, run: Grouping<Ask, O>['run']) {
    const keyOf = work === 'read' ? () => undefined : ({ key }: Ask) => key;
    return group({ ...this.grouping(work, run), keyOf });
  }

  private grouping<I extends { call: Call }, O>(work: string, run: Grouping<I, O>['run']) {
    return {
      ...GROUPS,
      refuse: ({ call }: I) => call.outgoing?.destroyed && clientLeft(),
      isApart: (error: unknown) => ONE_ROW.test(codeOf(error)),
      observe: (requests: number) => this.pool.observe(work, requests),
      run,
    };
  }

  private async readAll(asks: Ask[], since: number): Promise<(Stored | undefined)[]> {
    const columns = join([...this.shown.columns, VERSION]);
    const statement = sql`select ${columns} from ${this.table} t where ${this.keyed(asks)}`;
    const rows = this.byKey(await this.pool.run('read', ownCall(), statement, since));
    return asks.map((ask) => {
      const values = rows.get(ask.key);
      return values && this.isOwn(values, ask) ? this.storedOf(values) : undefined;
    });
  }

  /** Inserts the rows whose key is free; rows of 0 for the others. */
  private createAll(asks: Ask[], since: number): Promise<Written[]> {
    const action = sql`${this.insert(sorted(asks))} on conflict (${this.key}) do nothing`;
    return this.writeAll('keyed', asks, action, since, sql`true`);
  }

  private replaceAll(asks: Ask[], since: number): Promise<Written[]> {
    const { key, settable } = this.resource;
    const action = sql`${this.insert(sorted(asks))} ${this.onConflict([key], settable)}`;
    return this.writeAll('write', asks, action, since, sql`t.xmax = 0`);
  }

  private removeAll(asks: Ask[], since: number): Promise<Written[]> {
    const owned = this.resource.owner ? [this.ownedByEach(asks)] : [];
    const action = sql`delete from ${this.table} t ${where([this.keyed(asks), ...owned])}`;
    return this.writeAll('write', asks, action, since, sql`false`);
  }

  private async writeAll(kind: Kind, asks: Ask[], action: Sql, since: number, created: Sql) {
    const call = ownCall();
    const returning = join([...this.shown.columns, VERSION, created]);
    const result = await this.pool.run(kind, call, sql`${action} returning ${returning}`, since);
    const rows = this.byKey(result);
    return asks.map((ask) => {
      ask.call.repeated ||= call.repeated;
      const values = rows.get(ask.key);
      if (!values) return writtenOf([], '');
      return writtenOf([values], this.toJson(values), this.shown.fields.length);
    });
  }

  /** The caller's existing rows among those asked for, and whether each equals the wanted one. */
  private async compare(asks: Ask[]): Promise<Written[]> {
    const { shown, resource, table, key } = this;
    const wanted = resource.settable.map((name) => {
      const sqlDefault = typeof resource.columns[name]?.default === 'function';
      const column = identifier(name);
      return sqlDefault ? sql`coalesce(i.${column}, t.${column})` : sql`i.${column}`;
    });
    const same = sql`row(${identifiers(resource.settable, 't.')}) is not distinct from row(${join(wanted)})`;
    const statement = sql`select ${join([...shown.columns, VERSION, same])}
      from ${table} t join ${this.input(asks)} on t.${key} = i.${key}
      ${where(this.ownedBy(asks[0]?.call ?? ownCall()))}`;
    const found = await this.pool.run('read', ownCall(), statement);
    return found.map((values) => {
      const at = shown.fields.length;
      const { body, version } = this.storedOf(values);
      return { rows: 1, body, version, created: false, same: values[at + 1] === 't' };
    });
  }

  private storedOf(values: Values): Stored {
    return { body: this.toJson(values), version: String(values[this.shown.fields.length]) };
  }

  private byKey(result: Result): Map<string | null | undefined, Values> {
    return new Map(result.map((values) => [values[0], values])); // the key is the first column
  }

  private isOwn(values: Values, { call }: Ask): boolean {
    const { owner, names } = this.resource;
    return !owner || values[names.indexOf(owner)] === call.sub;
  }

  /** A lone key is compared directly, so that an engine of several nodes asks one of them. */
  private keyed(asks: Ask[]): Sql {
    const keys = asks.map((ask) => ask.key);
    if (keys.length === 1) return sql`t.${this.key} = ${keys[0]}`;
    return sql`t.${this.key} = any(${arrayLiteral(keys)}::${this.keyType}[])`;
  }

  private ownedByEach(asks: Ask[]): Sql {
    const keys = arrayLiteral(asks.map((ask) => ask.key));
    const subs = arrayLiteral(asks.map(({ call }) => call.sub));
    const pair = sql`(t.${this.key}, t.${identifier(this.resource.owner ?? '')})`;
    return sql`${pair} in (select * from unnest(${keys}::${this.keyType}[], ${subs}::text[]))`;
  }

  // Parts of statements

  private toText(name: string, value: unknown): string | null {
    if (value === null || value === undefined) return null;
    return kindOf(typeOf(this.resource, name)) === 'json' ? JSON.stringify(value) : toText(value);
  }

  /** One array for each column, of the rows' values. A type without its length truncates nothing. */
  private arraysOf(names: string[], rows: Row[]): Sql[] {
    return names.map((name) => {
      const type = typeOf(this.resource, name).replace(/\(.*\)/, '');
      const values = rows.map((row) => this.toText(name, row[name]));
      return sql`${arrayLiteral(values)}::${raw(type)}[]`;
    });
  }

  /** The rows as a table `i`. */
  private input(asks: Ask[]): Sql {
    const rows = asks.map(({ row }) => row);
    return sql`unnest(${join(this.arraysOf(this.inputs, rows))}) i(${identifiers(this.inputs)})`;
  }

  private insert(asks: Ask[]): Sql {
    const { names, columns } = this.resource;
    const values = names.map((name) => {
      const { generated, default: initial } = columns[name] ?? {};
      if (generated) return generated();
      return typeof initial === 'function'
        ? `coalesce(i.${quote(name)}, ${initial()})`
        : `i.${quote(name)}`;
    });
    return sql`insert into ${this.table} as t (${identifiers(names)})
      select ${raw(values.join(', '))} from ${this.input(asks)}`;
  }

  /** Sets columns of the existing row; never the key, and never in another caller's row. */
  private onConflict(target: string[], columns: string[], tests: Sql[] = []): Sql {
    const { settable, owner } = this.resource;
    const set = columns.filter((name) => settable.includes(name)).map(identifier);
    const mine = owner ? [sql`t.${identifier(owner)} = excluded.${identifier(owner)}`] : [];
    const changes = join(set.map((name) => sql`${name} = excluded.${name}`));
    const action = sql`update set ${changes} ${where([...mine, ...tests])}`;
    return sql`on conflict (${identifiers(target)}) do ${set.length > 0 ? action : sql`nothing`}`;
  }

  private update(part: Row): Sql {
    const named = this.resource.settable.filter((name) => Object.hasOwn(part, name));
    return this.assign(
      named.map((name) => sql`${identifier(name)} = ${this.toText(name, part[name])}`),
    );
  }

  /** Without an assignment the row gets a new version all the same. */
  private assign(set: Sql[]): Sql {
    const first = identifier(this.resource.settable[0] ?? '');
    return sql`update ${this.table} t set ${set.length > 0 ? join(set) : sql`${first} = t.${first}`}`;
  }

  private deletion(): Sql {
    return sql`delete from ${this.table} t`;
  }

  private versionTests({ match, noneMatch }: Preconditions): Sql[] {
    const version = sql`t.xmin::text`;
    const tests = [];
    if (Array.isArray(match)) tests.push(sql`${version} = any(${arrayLiteral(match)}::text[])`);
    if (Array.isArray(noneMatch))
      tests.push(sql`${version} <> all(${arrayLiteral(noneMatch)}::text[])`);
    return noneMatch === '*' ? [...tests, sql`false`] : tests;
  }

  /** What must not be true of the rows that a statement changed. */
  private broken(single: boolean, most: number | undefined): Sql[] {
    const rows = sql`(select count(*) from changed)`;
    return [
      ...(single ? [sql`${rows} <> 1`] : []),
      ...(most === undefined ? [] : [sql`${rows} > ${most}`]),
    ];
  }

  /** Changes the caller's rows that pass the tests; all or none of them have the wanted versions. */
  private async change(
    action: Sql,
    tests: Sql[],
    terms: Terms,
    call: Call,
    alone = false,
  ): Promise<Written> {
    const own = [...tests, ...this.ownedBy(call)];
    const versions = this.versionTests(terms);
    const all = sql`select count(*) from ${this.table} t ${where(own)}`;
    const single = terms.format === OBJECT;
    const broken = this.broken(single, terms.most);
    if (versions.length > 0 && !alone) broken.push(sql`(select count(*) from changed) <> (${all})`);
    const format = alone ? OBJECT : terms.format;
    const statement = sql`${action} ${where([...own, ...versions])}`;
    const made = await this.write('write', statement, { broken }, { ...terms, format }, call).catch(
      async (error) => {
        if (codeOf(error) !== DIVISION_BY_ZERO) throw error;
        if (versions.length > 0) throw preconditionFailed();
        const rows = await this.count(all, call);
        throw single && rows !== 1 ? notOne(rows) : tooMany(rows);
      },
    );
    if (made.rows > 0) return made;
    if (versions.length > 0 && (await this.count(all, call)) > 0) throw preconditionFailed();
    if (single) throw notOne(0);
    return made;
  }

  private async count(statement: Sql, call: Call): Promise<number> {
    return Number((await this.pool.run('read', call, statement))[0]?.[0]);
  }

  /** Runs a write, and reads back what the format needs; a broken term undoes it. */
  private async write(
    kind: Kind,
    action: Sql,
    { created, broken = [] }: { created?: Sql; broken?: Sql[] },
    { format, select }: Terms,
    call: Call,
  ): Promise<Written> {
    const shown = shownOf(this.resource, format ? select : []);
    const flags = [VERSION, created ?? sql`false`];
    const columns = format || created ? [...shown.columns, ...flags] : [sql`1`];
    const silent = !format && !created && broken.length === 0;
    const statement = silent ? action : guarded(action, columns, broken);
    const result = await this.admit(call, () => this.pool.run(kind, call, statement));
    const body = format ? bodyOf(format, shown.fields, result) : '';
    const written = writtenOf(result, body, shown.fields.length);
    return silent ? { ...written, rows: result.count } : written;
  }

  // Pages

  /** Equal asks share a page. */
  private async readPages(asks: PageAsk[], since: number): Promise<Page[]> {
    const [{ query, wanted, shown, statement }] = asks as [PageAsk];
    const found = await this.pool.run('read', ownCall(), statement, since);
    const total = wanted.count ? Number(found[0]?.at(-1)) : undefined;
    const rows = wanted.count && found[0]?.at(-2) === null ? [] : found; // the total stands alone
    const more = rows.length > wanted.limit;
    if (more) rows.length = wanted.limit;
    const last = rows.at(-1);
    const page = {
      rows: rows.length,
      body: bodyOf(wanted.format, shown.fields, rows),
      more: more && last !== undefined,
      next: more && last ? cursorOf(this.resource, query, shown, last) : '',
      ...(total !== undefined && { total }),
    };
    return asks.map(() => page);
  }

  /** One row more than wanted shows whether there are more; with a total, a row that has it. */
  private pageStatement(query: Query, { limit, count }: Wanted, shown: Shown, call: Call): Sql {
    const tests = this.ownedBy(call);
    const columns = [...shown.columns, ...cursorColumns(query)];
    if (!count) return selectOf(this.resource, query, columns, tests, limit + 1);
    const named = [...columns, sql`true`].map((one, at) => sql`${one} as ${identifier(`c${at}`)}`);
    const page = selectOf(this.resource, query, named, tests, limit + 1);
    const total = countOf(this.resource, query, tests);
    return sql`select p.*, total.count from (${total}) total left join (${page}) p on true`;
  }
}

/** A write whose effect is undone by a division by zero when a term is broken. */
function guarded(action: Sql, columns: Sql[], broken: Sql[]): Sql {
  if (broken.length === 0) return sql`${action} returning ${join(columns)}`;
  const named = columns.map((one, at) => sql`${one} as ${identifier(`c${at}`)}`);
  return sql`with changed as (${action} returning ${join(named)})
    select *, 1 / (case when ${join(broken, raw(' or '))} then 0 else 1 end) from changed`;
}

/** By key, so that two groups lock their rows in the same order. */
function sorted(asks: Ask[]): Ask[] {
  return asks.length === 1 ? asks : asks.toSorted((a, b) => (a.key < b.key ? -1 : 1));
}

/** Of written rows, whose version and flag are behind `at` values. */
function writtenOf(rows: Values[], body: string, at = 0): Written {
  return {
    rows: rows.length,
    body,
    version: String(rows[0]?.[at] ?? ''),
    created: rows.some((values) => values[at + 1] === 't'),
    same: false,
  };
}

async function* mapBatches(batches: AsyncGenerator<Values[]>, write: (values: Values) => string) {
  for await (const batch of batches) yield batch.map(write);
}
