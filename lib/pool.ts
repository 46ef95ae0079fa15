/** Connections to PostgreSQL: deadlines, retries, a limit on requests in flight, streams. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from 'pino';
import postgres from 'postgres';
import {
  CONNECT_TIMEOUT,
  type Config,
  DEADLINE,
  LOCK_TIMEOUT,
  STATEMENT_TIMEOUT,
} from './config.ts';
import { copyFrom } from './copy.ts';
import { clientLeft, codeOf, LOST, tooSlow, unavailable } from './problem.ts';
import type { Values } from './rows.ts';
import { numbered, type Sql, sql } from './sql.ts';

/** The rows of a result; `count` is how many rows the statement read or changed. */
export type Result = Values[] & { count: number };

/** Whether a statement of unknown outcome may run again: a `keyed` insert does not run twice. */
export type Kind = 'read' | 'keyed' | 'write';

/** One request: its caller, ms spent in the database, whether a statement was retried. */
export type Call = {
  sub: string;
  ms: number;
  repeated: boolean;
  outgoing?: { destroyed: boolean };
};

/** A call whose caller is the service itself. */
export const ownCall = (): Call => ({ sub: '', ms: 0, repeated: false });

type PoolOptions = Pick<Config, 'DATABASE_URL' | 'POOL_SIZE' | 'DB_PREPARE'> &
  Partial<Pick<Config, 'PGHOST' | 'PGTARGETSESSIONATTRS'>>;
/** One of several hosts. */
type Place = { host?: string; target_session_attrs?: Config['PGTARGETSESSIONATTRS'] };

/** postgres.js sets `state` once the query has been written to a connection (3.4.9). */
type Pending = PromiseLike<Result> & { state?: object | null; cancel: () => void };

/** One connection. `close()` gives it up; the pool then opens another. */
type Client = { driver: postgres.Sql; open: boolean; pending: Set<Task>; close: () => void };

/** A statement on its way to its result. Times are ms of performance.now(). */
type Task = {
  kind: Kind;
  call: Call;
  statement: Sql;
  since: number;
  sent: number;
  tries: number;
  client?: Client;
  query?: Pending;
  resolve: (rows: Result) => void;
  reject: (error: unknown) => void;
};

const IN_FLIGHT_PER_CLIENT = 64;
const PIPELINED = 2; // statements per connection: one runs, one is already on the wire
const MAX_PREPARED = 256; // statement texts; each stays prepared on every connection
const MAX_PREPARED_LENGTH = 4000; // characters
const STREAMS = 4;
export const FETCH = 200; // rows of a stream per round trip
const SWEEP = 50; // ms between two looks at the deadlines

/**
 * POOL_SIZE connections, reopened until end(). Each is a postgres.js client with `max: 1`, discarded
 * when it closes: the driver's own queue grows for ever under constant load, and a client that
 * reconnects hands the error of the old connection to the first new query (3.4.9).
 */
export class Pool {
  readonly counts = { inFlight: 0, streams: 0 };
  /** Tasks without a connection, in the order of arrival. */
  readonly queue = new Set<Task>();
  /** Is called with the kind of work and the size of each group that became one statement. */
  observe: (work: string, requests: number) => void = () => {};
  state: 'starting' | 'up' | 'down' = 'starting';
  private options: PoolOptions;
  private place: Place = {}; // of the newest connection, for streams
  private log: Logger;
  private ending = false;
  private clients = new Set<Client>();
  private tasks = new Set<Task>();
  private sweeper: NodeJS.Timeout | undefined; // runs while there are tasks
  private prepared = new Map<string, string>();

  constructor(options: PoolOptions, log: Logger) {
    this.options = options;
    this.log = log;
    for (let count = 0; count < options.POOL_SIZE; count += 1) void this.keepOpen();
  }

  /** Counts a request as in flight until it is answered; refuses it when there are too many. */
  async admit<T>(call: Call, answer: () => Promise<T>): Promise<T> {
    if (this.counts.inFlight >= this.options.POOL_SIZE * IN_FLIGHT_PER_CLIENT) throw unavailable();
    const started = performance.now();
    this.counts.inFlight += 1;
    try {
      return await answer();
    } finally {
      this.counts.inFlight -= 1;
      call.ms += performance.now() - started;
    }
  }

  /**
   * Runs one statement, and again where it did not run or may run twice. Rejects with Problem 503 or
   * 504 within DEADLINE from `since`, or with PostgreSQL's error.
   */
  run(kind: Kind, call: Call, statement: Sql, since = performance.now()): Promise<Result> {
    return new Promise((resolve, reject) => {
      const tries = this.options.POOL_SIZE + 2;
      const task = { kind, call, statement, since, sent: 0, tries, resolve, reject };
      this.tasks.add(task);
      this.queue.add(task);
      if (!this.sweeper) this.sweep();
      this.advance();
    });
  }

  /** Resolves when the database answers within a second. */
  ping(): Promise<unknown> {
    return within(1000, this.run('read', ownCall(), sql`select 1`));
  }

  /** Runs one read; the rows as parsed JSON, numbers as numbers. */
  async json(statement: Sql, call = ownCall()): Promise<Record<string, unknown>[]> {
    const rows = sql`select coalesce(json_agg(t), '[]')::text as body from (${statement}) t`;
    const [row] = await this.admit(call, () => this.run('read', call, rows));
    return JSON.parse(row?.[0] ?? '[]');
  }

  /** All rows of a read in batches, after that of `counting`: constant memory, one snapshot. */
  async *stream({ text, values }: Sql, counting?: Sql): AsyncGenerator<Values[]> {
    const driver = this.borrow();
    const ask = (text: string, values: unknown[] = []): Promise<Values[]> =>
      within(DEADLINE, driver.unsafe(numbered(text), values as never[]).values() as never);
    try {
      await ask('begin isolation level repeatable read read only');
      if (counting) yield await ask(counting.text, counting.values);
      await ask(`declare c no scroll cursor for ${text}`, values);
      for (let rows = await ask(`fetch ${FETCH} from c`); rows.length > 0; ) {
        const next = ask(`fetch ${FETCH} from c`);
        next.catch(() => {}); // awaited below, unless the reader stops before
        yield rows;
        rows = await next;
      }
    } finally {
      this.release(driver);
    }
  }

  /** As the server reported with its last statement (PostgreSQL 14). */
  get readOnly(): boolean {
    const open = [...this.clients].filter((client) => client.open);
    const isOn = (name: string) => open.some(({ driver }) => driver.parameters[name] === 'on');
    return isOn('in_hot_standby') || isOn('default_transaction_read_only');
  }

  /** COPY … FROM STDIN with a connection of its own: all of `bytes` or nothing is stored. */
  async copy({ text }: Sql, bytes: AsyncIterable<Buffer>): Promise<void> {
    const driver = this.borrow();
    try {
      await copyFrom(driver, text, bytes);
    } finally {
      this.release(driver);
    }
  }

  async end(): Promise<void> {
    this.ending = true;
    await Promise.all([...this.clients].map(({ driver }) => driver.end({ timeout: 1 })));
  }

  // Connections

  private async keepOpen(): Promise<void> {
    const places = placesOf(this.options);
    for (let pause = 0; !this.ending; pause = Math.min(pause * 2 + 25, 500)) {
      const [place = {}] = places;
      const driver = connect(this.options, place, STATEMENT_TIMEOUT, () => {
        client.open = false;
        for (const { query } of client.pending) if (!query?.state) query?.cancel(); // else it reconnects
        client.close();
      });
      const client: Client = { driver, open: false, pending: new Set(), close: () => {} };
      this.clients.add(client);
      try {
        await within(CONNECT_TIMEOUT + 500, driver`select 1`);
        client.open = true;
        this.place = place;
        pause = 0;
        this.change('up');
        await new Promise<void>((resolve) => {
          client.close = resolve;
        });
      } catch (error) {
        places.push(...places.splice(0, 1));
        if (!this.leastBusy()) this.change('down', failureOf(driver, error as Error));
      }
      client.open = false;
      this.clients.delete(client);
      void driver.end({ timeout: 0 });
      await sleep(pause);
    }
  }

  private change(to: 'up' | 'down', details: object = {}): void {
    if (this.state !== to) this.log[to === 'up' ? 'info' : 'warn'](details, `database ${to}`);
    this.state = to;
    this.advance();
  }

  private leastBusy(): Client | undefined {
    let best: Client | undefined;
    for (const client of this.clients)
      if (client.open && (!best || client.pending.size < best.pending.size)) best = client;
    return best;
  }

  private borrow(): postgres.Sql {
    if (this.counts.streams >= STREAMS || this.state === 'down') throw unavailable();
    this.counts.streams += 1;
    return connect(this.options, this.place, 0);
  }

  private release(driver: postgres.Sql): void {
    this.counts.streams -= 1;
    void driver.end({ timeout: 0 });
  }

  // Tasks

  /** Sends what waits, as far as connections have room; refuses it when none can be opened. */
  private advance(): void {
    for (const task of this.queue) {
      const client = this.leastBusy();
      if (client ? client.pending.size >= PIPELINED : this.state !== 'down') return;
      this.queue.delete(task);
      if (task.call.outgoing?.destroyed) this.settle(task, clientLeft());
      else if (client) this.send(task, client);
      else this.settle(task, unavailable());
    }
  }

  private send(task: Task, client: Client): void {
    const { text, values } = task.statement;
    const known = this.prepared.get(text);
    const ready = known ?? numbered(text);
    const fits = text.length <= MAX_PREPARED_LENGTH && this.prepared.size < MAX_PREPARED;
    if (fits) this.prepared.set(text, ready);
    const prepare = fits || known !== undefined;
    const query = client.driver.unsafe(ready, values as never[], { prepare }).values();
    task.client = client;
    task.query = query as unknown as Pending;
    task.sent = performance.now();
    client.pending.add(task);
    task.query.then(
      (rows) => this.settle(task, undefined, rows),
      (error) => this.fail(task, error),
    );
  }

  /** Runs it again if it was not sent, or the server undid it, or it was lost and may run twice. */
  private fail(task: Task, error: unknown): void {
    const code = codeOf(error);
    const sent = task.query?.state;
    const late = performance.now() - task.since > LOCK_TIMEOUT;
    const undone = !sent || /^(57P0.|40001|40P01)$/.test(code);
    const again = undone || (task.kind !== 'write' && LOST.test(code));
    task.tries -= 1;
    if (late || task.tries === 0 || !again) {
      this.settle(task, sent ? error : unavailable());
      return;
    }
    task.call.repeated ||= LOST.test(code);
    task.client?.pending.delete(task);
    delete task.query; // it waits again: past its deadline it is refused, not sent
    this.queue.add(task);
    this.advance();
  }

  private settle(task: Task, error: unknown, rows?: Result): void {
    this.tasks.delete(task);
    this.queue.delete(task);
    task.client?.pending.delete(task);
    // postgres 3.4.9 begins a result with holes after a query that failed between its rows (#1181)
    if (!rows) task.reject(error);
    else if (rows.length === 0 || rows[0]) task.resolve(rows);
    else task.resolve(Object.assign(rows.filter(Boolean), { count: rows.count }));
    this.advance();
  }

  /** Answers each task by its deadline; gives up a connection whose server does not answer. */
  private sweep(): void {
    const now = performance.now();
    this.sweeper = this.tasks.size > 0 ? setTimeout(() => this.sweep(), SWEEP) : undefined;
    for (const task of this.tasks) {
      const sent = task.query?.state;
      if (sent && now > task.sent + DEADLINE) task.client?.close();
      if (now < task.since + DEADLINE) continue;
      task.reject(sent ? tooSlow() : unavailable());
      if (!task.query) this.settle(task, unavailable());
      else if (!sent) task.client?.close();
    }
  }
}

/**
 * Types whose values postgres 3.4.9 would convert ('true' to false, JSON to JSON of JSON, 2026-02-30
 * to March 2): they pass as PostgreSQL's text instead.
 */
const CONVERTED = [16, 17, 20, 21, 23, 26, 114, 700, 701, 1082, 1114, 1184, 3802];

/**
 * None where one host is given. Each is tried alone: given a list of which none is suitable,
 * postgres 3.4.9 dials 700 times a second and reports no error.
 */
function placesOf({ DATABASE_URL = '', PGHOST = '', PGTARGETSESSIONATTRS }: PoolOptions): Place[] {
  const [, list = PGHOST] = /^\w+:\/\/(?:[^/?]*@)?([^/?]*)/.exec(DATABASE_URL) ?? [];
  const target_session_attrs = PGTARGETSESSIONATTRS ?? 'primary';
  const chosen = DATABASE_URL.includes('target_session_attrs=') ? {} : { target_session_attrs };
  return list.includes(',') ? list.split(',').map((host) => ({ host, ...chosen })) : [];
}

function connect(options: PoolOptions, place: Place, timeout: number, onclose = () => {}) {
  const pooled = options.DB_PREPARE === 'false'; // a pooler refuses session parameters; the database sets them
  const limits = {
    lock_timeout: LOCK_TIMEOUT,
    statement_timeout: timeout,
    client_connection_check_interval: 1000,
  };
  const text = { to: 25, from: CONVERTED, serialize: String, parse: (value: string) => value };
  return postgres(options.DATABASE_URL ?? '', {
    max: 1,
    prepare: !pooled,
    fetch_types: false,
    max_lifetime: null,
    connect_timeout: CONNECT_TIMEOUT / 1000,
    connection: pooled ? {} : limits,
    types: { text },
    ...place,
    onclose,
    onnotice: () => {},
  }) as unknown as postgres.Sql;
}

/** Why no connection was made, in PostgreSQL's words, and where; never the password. */
function failureOf({ options: { host, port, database, user } }: postgres.Sql, error: Error) {
  const where = { host: host.join(), port: port.join(), database, role: user };
  return { code: codeOf(error), error: error.message, ...where };
}

/** The promise, or Problem 503 when it takes longer. */
async function within<T>(ms: number, promise: PromiseLike<T>): Promise<T> {
  const timer = new AbortController();
  const late = sleep(ms, undefined, { signal: timer.signal }).then(() =>
    Promise.reject(unavailable()),
  );
  return Promise.race([promise, late]).finally(() => timer.abort());
}
