/** Reads and writes of one table; requests that arrive together share a statement. */
import { v7 as uuidv7 } from 'uuid';
import type { Resource, Row } from './columns.ts';
import type { Filter, Member, Query } from './dialect.ts';
import { type Grouping, group, share } from './group.ts';
import { CSV, OBJECT } from './headers.ts';
import { type Call, FETCH, type Kind, ownCall, type Pool, type Result } from './pool.ts';
import {
  clientLeft,
  codeOf,
  keyTaken,
  notOne,
  Problem,
  preconditionFailed,
  tooMany,
} from './problem.ts';
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
  type Page,
  pageOf,
  type Shown,
  selectOf,
  selectPage,
  shownOf,
  type Wanted,
} from './select.ts';
import { identifier, identifiers, join, type Sql, sql, where } from './sql.ts';
import {
  BROKEN,
  brokenBy,
  type Preconditions,
  returning,
  Statements,
  VERSION,
} from './statements.ts';

/** A row as JSON, with its version in the database for the ETag. */
export type Stored = { body: string; version: string };

/**
 * What a write did to how many rows, and those in the wanted format. `created`: some are new.
 * `same`: a create found its keys taken by rows that equal the wanted ones.
 */
export type Written = Stored & { rows: number; created: boolean; same: boolean };

/** How a write answers its rows, without `format` not at all; it changes nothing unless `most` holds. */
export type Terms = Preconditions & {
  format?: Format | undefined;
  select?: Member[] | undefined;
  most?: number | undefined;
};

/** All rows of a list, in batches of texts; `rows` is known when the first batch is the last. */
export type Batches = {
  first: string[];
  rest: AsyncIterable<string[]>;
  close: () => void;
  rows?: number;
  total?: number;
};

/** A request for one row, and one for a page. */
type Ask = { key: string; call: Call; row: Row };
type PageAsk = { query: Query; wanted: Wanted; shown: Shown; statement: Sql; call: Call };

const GROUPS = { most: 128, width: 2 };
/** SQLSTATE classes of errors that one row of a group may cause, and that undo the statement. */
const ONE_ROW = /^(2[^58]|4|55)/;
const CREATED = sql`t.xmax = 0`; // of an upsert: no row was there

export class Store {
  private resource: Resource;
  private pool: Pool;
  private statements: Statements;
  private shown: Shown;
  private toJson: (values: Values) => string;
  private reads = this.together('read', (asks, since) => this.readAll(asks, since));
  private creates = this.together('create', (asks, since) => this.createAll(asks, since));
  private replaces = this.together('replace', (asks, since) => this.replaceAll(asks, since));
  private removes = this.together('delete', (asks, since) => this.removeAll(asks, since));
  private pages = share(
    this.grouping('list', (asks: PageAsk[], since) => this.readPages(asks, since)),
  );

  constructor(resource: Resource, pool: Pool) {
    this.resource = resource;
    this.pool = pool;
    this.statements = new Statements(resource);
    this.shown = shownOf(resource);
    this.toJson = jsonWriter(this.shown.fields);
  }

  // Reads

  /** The row as an answer of 1 row, or of 0. */
  read(key: string, call: Call): Promise<Written> {
    return this.admit(call, () => this.reads({ key, call, row: {} }));
  }

  /** One page. Equal ones that are requested at the same time share one statement. */
  page(query: Query, wanted: Wanted, call: Call): Promise<Page> {
    const shown = shownOf(this.resource, query.select);
    const tests = this.statements.isOwnedBy(call.sub);
    const statement = selectPage(this.resource, query, wanted, shown, tests);
    const names = shown.fields.map(({ name }) => name); // aliases are not in the statement
    const key = wanted.format + statement.text + JSON.stringify([statement.values, names]);
    return this.admit(call, () => this.pages(key, { query, wanted, shown, statement, call }));
  }

  /** All rows of a list, streamed at constant memory. */
  async stream(
    query: Query,
    { count, format }: Omit<Wanted, 'limit'>,
    call: Call,
  ): Promise<Batches> {
    this.checkCaller(call);
    const tests = this.statements.isOwnedBy(call.sub);
    const { fields, columns } = shownOf(this.resource, query.select);
    const statement = selectOf(this.resource, query, columns, tests, query.limit);
    const counting = count ? countOf(this.resource, query, tests) : undefined;
    const batches = this.pool.stream(statement, counting);
    const total = count ? Number((await batches.next()).value?.[0]?.[0]) : undefined;
    const { value: rows = [] } = await batches.next();
    const write = rowWriter(format, fields);
    return {
      first: [...(format === CSV ? [headerOf(fields)] : []), ...rows.map(write)],
      rest: mapBatches(batches, write),
      close: () => void batches.return(undefined),
      ...(rows.length < FETCH && { rows: rows.length }),
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
        const found = await this.compare([ask], { format: OBJECT });
        if (found.rows > 0) return found; // else it was deleted meanwhile
      }
      return writtenOf([], '');
    });
  }

  /** Inserts all rows, or none when a key exists: then `created` is false, and `same` compares. */
  async createMany(rows: Row[], terms: Terms, call: Call): Promise<Written> {
    if (terms.format === OBJECT && rows.length !== 1) throw notOne(rows.length);
    if (rows.length > (terms.most ?? rows.length)) throw tooMany(rows.length);
    const asks = rows.map((row) => this.askFor(row, call));
    const action = this.statements.insert(asks.map((ask) => ask.row));
    try {
      return { ...(await this.write('keyed', action, terms, call)), created: true };
    } catch (error) {
      const found = codeOf(error) === '23505' ? await this.compare(asks, terms) : undefined;
      if (!found?.rows) throw error; // another unique column is taken
      return found;
    }
  }

  /**
   * Inserts rows; where the `target` columns are taken, sets the `set` columns, or nothing. Throws 409
   * when another caller has one of the rows to set.
   */
  async upsert(
    rows: Row[],
    target: string[],
    set: string[],
    terms: Terms,
    call: Call,
  ): Promise<Written> {
    const { statements } = this;
    const { owner, settable } = this.resource;
    const insert = statements.insert(rows.map((row) => this.askFor(row, call).row));
    const action = sql`${insert} ${statements.onConflict(target, set)}`;
    const single = terms.format === OBJECT;
    const broken = brokenBy(single, terms.most);
    const all = owner && set.some((name) => settable.includes(name)) ? rows.length : 0;
    if (all > 0) broken.push(sql`(select count(*) from changed) < ${all}`);
    const made = await this.write('write', action, terms, call, { created: CREATED, broken }).catch(
      (error) => {
        if (codeOf(error) !== BROKEN) throw error;
        if (rows.length > (terms.most ?? rows.length)) throw tooMany(rows.length);
        throw single && rows.length > 1 ? notOne(rows.length) : keyTaken();
      },
    );
    if (made.rows < all) throw keyTaken();
    return made;
  }

  /** Inserts the row, or replaces the one with its key; 0 rows: that is another caller's. */
  async replace(row: Row, terms: Preconditions, call: Call): Promise<Written> {
    const { match, noneMatch } = terms;
    const ask = this.askFor(row, call);
    if (!match && !noneMatch) return this.admit(call, () => this.replaces(ask));
    const { key, settable } = this.resource;
    const set = noneMatch === '*' ? [] : settable;
    const conflict = this.statements.onConflict([key], set, this.statements.hasVersion(terms));
    const action = sql`${this.statements.insert([ask.row])} ${conflict}`;
    const made = match
      ? await this.changeOne(this.statements.update(row, true), ask.key, terms, call)
      : await this.write('write', action, { format: OBJECT }, call, { created: CREATED });
    if (made.rows === 0) throw preconditionFailed();
    return made;
  }

  /** Sets what the part has, in the statement itself (RFC 7396). */
  merge(key: string, part: Row, terms: Preconditions, call: Call): Promise<Written> {
    return this.changeOne(this.statements.update(part), key, terms, call);
  }

  /** Sets the same part in every row that passes the filters. */
  mergeMany(part: Row, filters: Filter[], terms: Terms, call: Call): Promise<Written> {
    return this.change(this.statements.update(part), filters.map(condition), terms, call);
  }

  /** Sets in each of the given rows, found by its key, what it has. */
  async mergeRows(parts: Row[], filters: Filter[], terms: Terms, call: Call): Promise<Written> {
    const keys = parts.map((part) => String(part[this.resource.key]));
    if (new Set(keys).size < keys.length)
      throw new Problem(400, '21000', 'Two rows have the same key.', 'Send each row once.');
    const tests = [this.statements.isKey(...keys), ...filters.map(condition)];
    const { action, joined } = this.statements.updateEach(parts);
    return this.change(action, tests, terms, call, joined);
  }

  remove(key: string, terms: Preconditions, call: Call): Promise<Written> {
    if (Array.isArray(terms.match) || terms.noneMatch)
      return this.changeOne(this.statements.deletion, key, terms, call);
    return this.admit(call, () => this.removes({ key, call, row: {} }));
  }

  removeMany(filters: Filter[], terms: Terms, call: Call): Promise<Written> {
    return this.change(this.statements.deletion, filters.map(condition), terms, call);
  }

  /** Stores all rows, which have values for `names`, or none, at constant memory; gives their number. */
  async copy(
    first: Row[],
    rest: AsyncIterable<Row[]>,
    names: string[],
    call: Call,
  ): Promise<number> {
    this.checkCaller(call);
    const { statements } = this;
    const { columns } = this.resource;
    const isGiven = (name: string) =>
      names.includes(name) || typeof columns[name]?.default !== 'function'; // else the table's
    const inputs = statements.inputs.filter(isGiven);
    let count = 0;
    const lineOf = (row: Row) => {
      const given = this.askFor(row, call).row;
      return `${csvLine(inputs.map((name) => statements.textOf(name, given[name])))}\n`;
    };
    const lines = (rows: Row[]) => {
      count += rows.length;
      return Buffer.from(rows.map(lineOf).join(''));
    };
    async function* all() {
      yield lines(first);
      for await (const rows of rest) yield lines(rows);
    }
    await this.pool.copy(
      sql`copy ${statements.table} (${identifiers(inputs)}) from stdin (format csv)`,
      all(),
    );
    return count;
  }

  // Callers

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

  /** The row with a key, and with its caller as owner; a body cannot name one. */
  private askFor(row: Row, call: Call): Ask {
    const { key, owner } = this.resource;
    row[key] ??= uuidv7();
    return { key: String(row[key]), row: owner ? { ...row, [owner]: call.sub } : row, call };
  }

  // Groups

  private together(work: string, run: Grouping<Ask, Written>['run']) {
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

  private async readAll(asks: Ask[], since: number): Promise<Written[]> {
    const { statements, shown, resource } = this;
    const keyed = statements.isKey(...asks.map(({ key }) => key));
    const columns = join([...shown.columns, VERSION]);
    const statement = sql`select ${columns} from ${statements.table} t where ${keyed}`;
    const found = await this.pool.run('read', ownCall(), statement, since);
    const owner = resource.names.indexOf(resource.owner ?? '');
    return this.writtenFor(
      asks,
      found,
      (values, { call }) => owner < 0 || values[owner] === call.sub,
    );
  }

  /** Inserts the rows whose key is free; 0 rows for the others. */
  private createAll(asks: Ask[], since: number): Promise<Written[]> {
    const { key } = this.resource;
    const insert = this.statements.insert(sortedRows(asks));
    const action = sql`${insert} on conflict (${identifier(key)}) do nothing`;
    return this.writeAll('keyed', asks, action, since, sql`true`);
  }

  private replaceAll(asks: Ask[], since: number): Promise<Written[]> {
    const { key, settable } = this.resource;
    const insert = this.statements.insert(sortedRows(asks));
    const action = sql`${insert} ${this.statements.onConflict([key], settable)}`;
    return this.writeAll('write', asks, action, since, CREATED);
  }

  private removeAll(asks: Ask[], since: number): Promise<Written[]> {
    const { statements } = this;
    const keys = asks.map(({ key }) => key);
    const subs = asks.map(({ call }) => call.sub);
    const tests = [statements.isKey(...keys), ...statements.areOwnedBy(keys, subs)];
    return this.writeAll('write', asks, sql`${statements.deletion} ${where(tests)}`, since);
  }

  private async writeAll(
    kind: Kind,
    asks: Ask[],
    action: Sql,
    since: number,
    created = sql`false`,
  ) {
    const call = ownCall();
    const statement = returning(action, [...this.shown.columns, VERSION, created]);
    const result = await this.pool.run(kind, call, statement, since);
    for (const ask of asks) ask.call.repeated ||= call.repeated;
    return this.writtenFor(asks, result);
  }

  /** For each ask, what happened to its row; the key is the first column. */
  private writtenFor(asks: Ask[], result: Result, isOwn = (_: Values, ask: Ask) => Boolean(ask)) {
    const rows = new Map(result.map((values) => [values[0], values]));
    return asks.map((ask) => {
      const values = rows.get(ask.key);
      if (!values || !isOwn(values, ask)) return writtenOf([], '');
      return writtenOf([values], this.toJson(values), this.shown.fields.length);
    });
  }

  /** The caller's existing rows among those asked for; `same`: all are there, equal to the wanted ones. */
  private async compare(asks: Ask[], { format, select }: Terms): Promise<Written> {
    const { statements } = this;
    const { fields, columns } = shownOf(this.resource, format ? select : []);
    const rows = asks.map(({ row }) => row);
    const own = where(statements.isOwnedBy(asks[0]?.call.sub ?? ''));
    const statement = sql`${statements.compare(rows, columns)} ${own}`;
    const found = await this.pool.run('read', ownCall(), statement);
    const at = fields.length;
    const same = found.length === asks.length && found.every((values) => values[at + 1] === 't');
    const body = format ? bodyOf(format, fields, found) : '';
    return { ...writtenOf(found, body, at), created: false, same };
  }

  // Single statements

  private async changeOne(
    action: Sql,
    key: string,
    terms: Preconditions,
    call: Call,
  ): Promise<Written> {
    const { statements } = this;
    const own = [statements.isKey(key), ...statements.isOwnedBy(call.sub)];
    const versions = statements.hasVersion(terms);
    const changing = sql`${action} ${where([...own, ...versions])}`;
    const made = await this.write('write', changing, { format: OBJECT }, call);
    if (made.rows === 0 && versions.length > 0 && (await this.count(own, call)) > 0)
      throw preconditionFailed();
    return made;
  }

  /**
   * Changes the caller's rows that pass the tests, if all of them have the wanted versions. `joined`
   * are the tests that need the tables of the action.
   */
  private async change(
    action: Sql,
    tests: Sql[],
    terms: Terms,
    call: Call,
    joined: Sql[] = [],
  ): Promise<Written> {
    const { statements } = this;
    const own = [...tests, ...statements.isOwnedBy(call.sub)];
    const versions = statements.hasVersion(terms);
    const single = terms.format === OBJECT;
    const broken = brokenBy(single, terms.most);
    const all = sql`(select count(*) from ${statements.table} t ${where(own)})`;
    if (versions.length > 0) broken.push(sql`(select count(*) from changed) <> ${all}`);
    const changing = sql`${action} ${where([...joined, ...own, ...versions])}`;
    const refuse = async () => {
      const rows = await this.count(own, call);
      if (versions.length > 0 && rows > 0) return preconditionFailed();
      return single && rows !== 1 ? notOne(rows) : tooMany(rows);
    };
    const made = await this.write('write', changing, terms, call, { broken }).catch(
      async (error) => {
        throw codeOf(error) === BROKEN ? await refuse() : error;
      },
    );
    if (made.rows === 0 && (single || versions.length > 0)) {
      const problem = await refuse();
      if (single || problem.status === 412) throw problem;
    }
    return made;
  }

  private async count(tests: Sql[], call: Call): Promise<number> {
    const statement = sql`select count(*) from ${this.statements.table} t ${where(tests)}`;
    return Number((await this.pool.run('read', call, statement))[0]?.[0]);
  }

  /** Runs a write, and reads back what the format needs; without a format the number of rows. */
  private async write(
    kind: Kind,
    action: Sql,
    { format, select }: Terms,
    call: Call,
    { created, broken }: { created?: Sql; broken?: Sql[] } = {},
  ): Promise<Written> {
    const { fields, columns } = shownOf(this.resource, format ? select : []);
    const silent = !format && !created && !broken?.length;
    const answered = [...columns, VERSION, created ?? sql`false`];
    const statement = silent ? action : returning(action, answered, broken);
    const result = await this.admit(call, () => this.pool.run(kind, call, statement));
    const written = writtenOf(result, format ? bodyOf(format, fields, result) : '', fields.length);
    return silent ? { ...written, rows: result.count } : written;
  }

  /** Equal asks share a page. */
  private async readPages(asks: PageAsk[], since: number): Promise<Page[]> {
    const [{ query, wanted, shown, statement }] = asks as [PageAsk];
    const rows = await this.pool.run('read', ownCall(), statement, since);
    const page = pageOf(this.resource, query, wanted, shown, rows);
    return asks.map(() => page);
  }
}

/** By key, so that two groups lock their rows in the same order. */
function sortedRows(asks: Ask[]): Row[] {
  const sorted = asks.length > 1 ? asks.toSorted((a, b) => (a.key < b.key ? -1 : 1)) : asks;
  return sorted.map(({ row }) => row);
}

/** The version and the flag of a row are after its `at` values. */
function writtenOf(rows: Values[], body: string, at = 0): Written {
  const created = rows.some((values) => values[at + 1] === 't');
  return { rows: rows.length, body, version: String(rows[0]?.[at] ?? ''), created, same: false };
}

async function* mapBatches(batches: AsyncIterable<Values[]>, write: (values: Values) => string) {
  for await (const batch of batches) yield batch.map(write);
}
