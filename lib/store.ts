/** Reads and writes of one table; requests that arrive together share a statement. */
import { v7 as uuidv7 } from 'uuid';
import type { Resource, Row } from './columns.ts';
import type { Filter, Member, Query } from './dialect.ts';
import { type Grouping, group, share } from './group.ts';
import { OBJECT } from './headers.ts';
import { type Call, FETCH, type Kind, ownCall, type Pool } from './pool.ts';
import {
  clientLeft,
  codeOf,
  keyTaken,
  notOne,
  Problem,
  preconditionFailed,
  tooMany,
} from './problem.ts';
import { bodyOf, csvLine, type Format, jsonWriter, piecesOf, type Values } from './rows.ts';
import { condition, countOf, planPage, selectOf, shownOf, type Wanted } from './select.ts';
import { identifiers, type Sql, sql, where } from './sql.ts';
import {
  brokenBy,
  hasVersion,
  ifBroken,
  type Preconditions,
  returning,
  statementsFor,
} from './statements.ts';

/**
 * What a write did to how many rows, and those in the wanted format; of one row its version, for the
 * ETag. `created`: some are new. `same`: a create found its keys taken by rows equal to the wanted.
 * `key`: of one row whose key the database made.
 */
export type Written = {
  rows: number;
  body: string;
  version: string;
  created: boolean;
  same: boolean;
  key?: string | null | undefined;
};

/** How a write answers its rows, without `format` not at all; it changes nothing unless `most` holds. */
export type Terms = Preconditions & {
  format?: Format | undefined;
  select?: Member[] | undefined;
  most?: number | undefined;
  on?: string[] | undefined; // of an upsert: the columns that find a row, else the key
};

/** A request for one row, and one for a page. */
type Ask = { key: string; row: Row; call: Call };
type PageAsk = ReturnType<typeof planPage> & { call: Call };

/** The requests of a group in the order of their keys, and the columns to answer. */
type Batch = { keys: string[]; rows: Row[]; subs: string[]; columns: Sql[] };

/** SQLSTATE classes of errors that one row of a group may cause, and that undo the statement. */
const ONE_ROW = /^(2[^58]|4|55)/;
const CREATED = sql`t.xmax = 0`; // of an upsert: no row was there

/** How a write runs: `created` is true for new rows, and one of `broken` undoes it, as do its terms. */
type How = { kind?: Kind; created?: Sql; broken?: Sql[] };

export class Store {
  private resource: Resource;
  private pool: Pool;
  private statements: ReturnType<typeof statementsFor>;
  private shown: ReturnType<typeof shownOf>;
  private toJson: (values: Values) => string;

  constructor(resource: Resource, pool: Pool) {
    this.resource = resource;
    this.pool = pool;
    this.statements = statementsFor(resource);
    this.shown = shownOf(resource);
    this.toJson = jsonWriter(this.shown.fields);
  }

  // Reads

  /** The row as an answer of 1 row, or of 0. */
  read(key: string, call: Call): Promise<Written> {
    return this.admit(call, () => this.reads({ key, row: {}, call }));
  }

  /** One page. Equal ones that are requested at the same time share one statement. */
  page(query: Query, wanted: Wanted, call: Call) {
    const plan = planPage(this.resource, query, wanted, this.statements.isOwnedBy(call.sub));
    const key = JSON.stringify([wanted.format, plan.fields, plan.statement]);
    return this.admit(call, () => this.pages(key, { ...plan, call }));
  }

  /** All rows of a list at constant memory; `rows` is known when the first piece has them all. */
  async stream(query: Query, wanted: Omit<Wanted, 'limit'>, call: Call) {
    this.checkCaller(call);
    const { count, format } = wanted;
    const tests = this.statements.isOwnedBy(call.sub);
    const { fields, columns } = shownOf(this.resource, query.select);
    const statement = selectOf(this.resource, query, columns, tests, query.limit);
    const counting = count ? countOf(this.resource, query, tests) : undefined;
    const batches = this.pool.stream(call, statement, counting);
    const total = count ? Number((await batches.next()).value?.[0]?.[0]) : undefined;
    const { value: first = [] } = await batches.next();
    return {
      pieces: piecesOf(format, fields, first, batches),
      close: () => void batches.return(undefined),
      rows: first.length < FETCH ? first.length : undefined,
      total,
    };
  }

  // Writes

  /** Inserts the row, or compares it with the one that has its key; 0 rows: that is another caller's. */
  create(row: Row, call: Call): Promise<Written> {
    const ask = this.askFor(row, call);
    return this.admit(call, async () => {
      const made = await this.creates(ask);
      return made.rows > 0 ? made : this.compare([ask], { format: OBJECT });
    });
  }

  /** Inserts all rows, or none when a key exists: then `created` is false, and `same` compares. */
  async createMany(rows: Row[], terms: Terms, call: Call): Promise<Written> {
    if (terms.format === OBJECT && rows.length !== 1) throw notOne(rows.length);
    if (rows.length > (terms.most ?? rows.length)) throw tooMany(rows.length);
    const asks = rows.map((row) => this.askFor(row, call));
    const action = this.statements.insert(asks.map((ask) => ask.row));
    const { keyMaker } = this.resource;
    // After true in the place of `created`: the key, which the request did not have
    if (keyMaker === 'database')
      return this.write(action, terms, call, { created: sql`true, t.${this.statements.key}` });
    const kind = keyMaker === 'service' ? 'keyed' : 'write';
    try {
      return { ...(await this.write(action, terms, call, { kind })), created: true };
    } catch (error) {
      const found = codeOf(error) === '23505' ? await this.compare(asks, terms) : undefined;
      if (!found?.rows) throw error; // another unique column is taken
      return found;
    }
  }

  /**
   * Inserts rows; where the key exists, sets the `set` columns, or nothing. Throws 409 when another
   * caller has one of the rows to set.
   */
  async upsert(rows: Row[], set: string[], terms: Terms, call: Call): Promise<Written> {
    const { owner, settable } = this.resource;
    const owned = rows.map((row) => this.askFor(row, call).row);
    const least = owner && set.some((name) => settable.includes(name)) ? rows.length : 0;
    const broken = least > 0 ? [sql`(select count(*) from changed) < ${least}`] : [];
    const action = this.statements.upsert(owned, set, [], terms.on);
    const how = { created: CREATED, broken };
    const made = await this.write(action, terms, call, how).catch(ifBroken);
    if (made && made.rows >= least) return made;
    if (!made && rows.length > (terms.most ?? rows.length)) throw tooMany(rows.length);
    throw !made && terms.format === OBJECT && rows.length > 1 ? notOne(rows.length) : keyTaken();
  }

  /** Inserts the row, or replaces the one with its key; 0 rows: that is another caller's. */
  async replace(row: Row, terms: Preconditions, call: Call): Promise<Written> {
    const { statements } = this;
    const { match, noneMatch } = terms;
    const ask = this.askFor(row, call);
    const isNumbered = this.resource.keyMaker === 'database'; // a new row gets the next number
    if (!match && !noneMatch && !isNumbered) return this.admit(call, () => this.replaces(ask));
    const set = noneMatch === '*' ? [] : this.resource.settable;
    const upsert = statements.upsert([ask.row], set, hasVersion(terms));
    const made =
      match || isNumbered
        ? await this.changeOne(statements.update(row, true), ask.key, terms, call)
        : await this.write(upsert, { format: OBJECT }, call, { created: CREATED });
    if (made.rows === 0 && (match || noneMatch)) throw preconditionFailed();
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
    const { action, isSame } = this.statements.updateEach(parts);
    return this.change(action, tests, terms, call, [isSame]);
  }

  remove(key: string, terms: Preconditions, call: Call): Promise<Written> {
    if (Array.isArray(terms.match) || terms.noneMatch)
      return this.changeOne(this.statements.deletion, key, terms, call);
    return this.admit(call, () => this.removes({ key, row: {}, call }));
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
    const { table, textFor, namesFor, inputs: all } = this.statements;
    const { columns } = this.resource;
    const isGiven = (name: string) =>
      names.includes(name) || typeof columns[name]?.default !== 'function'; // else the table's
    const inputs = namesFor(this.askFor(first[0] ?? {}, call).row, all).filter(isGiven);
    let count = 0;
    const linesOf = (rows: Row[]) => {
      count += rows.length;
      const given = rows.map((row) => this.askFor(row, call).row);
      const lines = given.map((row) => csvLine(inputs.map((name) => textFor(name, row[name]))));
      return Buffer.from(lines.join(''));
    };
    async function* pieces() {
      yield linesOf(first);
      for await (const rows of rest) yield linesOf(rows);
    }
    const statement = sql`copy ${table} (${identifiers(inputs)}) from stdin (format csv)`;
    await this.pool.copy(call, statement, pieces());
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

  /** The row with a key, where the service makes it, and with its caller as owner. */
  private askFor(row: Row, call: Call): Ask {
    const { key, owner, keyMaker } = this.resource;
    if (keyMaker === 'service') row[key] ??= uuidv7();
    return { key: String(row[key]), row: owner ? { ...row, [owner]: call.sub } : row, call };
  }

  // Groups

  private reads = this.together('read', 'read', ({ keys, columns }) =>
    this.statements.find(keys, columns),
  );
  /** Inserts the rows whose key is free; 0 rows for the others. */
  private creates = this.together('create', 'keyed', ({ rows, columns }) =>
    returning(this.statements.upsert(rows, []), columns, sql`true`),
  );
  private replaces = this.together('replace', 'write', ({ rows, columns }) =>
    returning(this.statements.upsert(rows, this.resource.settable), columns, CREATED),
  );
  private removes = this.together('delete', 'write', ({ keys, subs, columns }) => {
    const { deletion, isKey, areOwnedBy } = this.statements;
    const tests = [isKey(...keys), ...areOwnedBy(keys, subs)];
    return returning(sql`${deletion} ${where(tests)}`, columns);
  });
  private pages = share(
    this.grouping('list', async (asks: PageAsk[]) => {
      const [{ statement, toPage }] = asks as [PageAsk]; // equal in all
      const page = toPage(await this.pool.run('read', callOf(asks), statement));
      return asks.map(() => page);
    }),
  );

  /** Each gets its row, if that is its caller's; rows are locked in the same order by all groups. */
  private together(work: string, kind: Kind, statementFor: (batch: Batch) => Sql) {
    const run = async (asks: Ask[]) => {
      const call = callOf(asks);
      const { fields, columns } = this.shown;
      const sorted = asks.toSorted((a, b) => (a.key < b.key ? -1 : 1));
      const [keys, rows] = [sorted.map(({ key }) => key), sorted.map(({ row }) => row)];
      const subs = sorted.map((ask) => ask.call.sub);
      const statement = statementFor({ keys, rows, subs, columns });
      const again = kind === 'keyed' && this.resource.keyMaker !== 'service' ? 'write' : kind;
      const result = await this.pool.run(again, call, statement);
      const found = new Map(result.map((values) => [values[0], values])); // the key is first
      const owner = this.resource.names.indexOf(this.resource.owner ?? '');
      return asks.map((ask) => {
        ask.call.repeated ||= call.repeated;
        const values = found.get(ask.key);
        if (!values || (owner > 0 && values[owner] !== ask.call.sub)) return writtenOf([], '');
        return writtenOf([values], this.toJson(values), fields.length);
      });
    };
    const keyOf = kind === 'read' ? () => undefined : ({ key }: Ask) => key;
    return group({ ...this.grouping(work, run), keyOf });
  }

  private grouping<I extends { call: Call }, O>(work: string, run: Grouping<I, O>['run']) {
    return {
      most: 128,
      width: 2,
      refuse: ({ call }: I) => call.outgoing?.destroyed && clientLeft(),
      isApart: (error: unknown) => ONE_ROW.test(codeOf(error)),
      observe: (requests: number) => this.pool.observe(work, requests),
      run,
    };
  }

  // Single statements

  /** The caller's existing rows among those asked for; `same`: all are there, equal to the wanted ones. */
  private async compare(asks: Ask[], { format, select }: Terms): Promise<Written> {
    const { fields, columns } = shownOf(this.resource, format ? select : []);
    const rows = asks.map(({ row }) => row);
    const call = callOf(asks);
    const own = where(this.statements.isOwnedBy(asks[0]?.call.sub ?? ''));
    const statement = sql`${this.statements.compare(rows, columns)} ${own}`;
    const found = await this.pool.run('read', call, statement);
    const at = fields.length;
    const same = found.length === asks.length && found.every((values) => values[at + 1] === 't');
    const body = format ? bodyOf(format, fields, found) : '';
    return { ...writtenOf(found, body, at), created: false, same };
  }

  private async changeOne(action: Sql, key: string, terms: Preconditions, call: Call) {
    const { isKey, isOwnedBy } = this.statements;
    const own = [isKey(key), ...isOwnedBy(call.sub)];
    const versions = hasVersion(terms);
    const changing = sql`${action} ${where([...own, ...versions])}`;
    const made = await this.write(changing, { format: OBJECT }, call);
    if (made.rows === 0 && versions.length > 0 && (await this.count(own, call)) > 0)
      throw preconditionFailed();
    return made;
  }

  /**
   * Changes the caller's rows that pass the tests, if all of them have the wanted versions. `joined`
   * are the tests that need the tables of the action.
   */
  private async change(action: Sql, tests: Sql[], terms: Terms, call: Call, joined: Sql[] = []) {
    const { table, isOwnedBy } = this.statements;
    const own = [...tests, ...isOwnedBy(call.sub)];
    const versions = hasVersion(terms);
    const single = terms.format === OBJECT;
    const all = sql`(select count(*) from ${table} t ${where(own)})`;
    const broken = versions.length > 0 ? [sql`(select count(*) from changed) <> ${all}`] : [];
    const changing = sql`${action} ${where([...joined, ...own, ...versions])}`;
    const made = await this.write(changing, terms, call, { broken }).catch(ifBroken);
    if (made && (made.rows > 0 || (!single && versions.length === 0))) return made;
    const rows = await this.count(own, call);
    if (versions.length > 0 && rows > 0) throw preconditionFailed();
    if (single && rows !== 1) throw notOne(rows);
    if (!made || single) throw tooMany(rows);
    return made;
  }

  private async count(tests: Sql[], call: Call): Promise<number> {
    const statement = sql`select count(*) from ${this.statements.table} t ${where(tests)}`;
    return Number((await this.pool.run('read', call, statement))[0]?.[0]);
  }

  /** Runs a write, and reads back what the format needs; without a format the number of rows. */
  private async write(action: Sql, terms: Terms, call: Call, how: How = {}): Promise<Written> {
    const { format, select, most } = terms;
    const { kind = 'write', created } = how;
    const { fields, columns } = shownOf(this.resource, format ? select : []);
    const broken = how.broken ? [...brokenBy(format === OBJECT, most), ...how.broken] : [];
    const silent = !format && !created && broken.length === 0;
    const statement = silent ? action : returning(action, columns, created, broken);
    const result = await this.admit(call, () => this.pool.run(kind, call, statement));
    const written = writtenOf(result, format ? bodyOf(format, fields, result) : '', fields.length);
    return silent ? { ...written, rows: result.count } : written;
  }
}

/** The call of a group: its deadline is that of its oldest request. */
function callOf(asks: { call: Call }[]): Call {
  return { ...ownCall(), since: Math.min(...asks.map(({ call }) => call.since)) };
}

/** The version and the flag of a row are after its `at` values. */
function writtenOf(rows: Values[], body: string, at = 0): Written {
  const created = rows.some((values) => values[at + 1] === 't');
  const [first = []] = rows;
  const version = String(first[at] ?? '');
  return { rows: rows.length, body, version, created, same: false, key: first[at + 2] };
}
