/**
 * The parts of the service's start, one after the other, as JSON in ms: Node itself, the imports, the
 * first connection, the look at the table. main() makes all connections at once; here is the first.
 */
const node = performance.now();
const { Database, ensureTable, passengers, readConfig } = await import('../app.ts');
const { pino } = await import('pino');
const imports = performance.now() - node;

const config = { ...readConfig(process.env), POOL_SIZE: 1 };
const database = new Database(config, pino({ level: 'silent' }));
await ensureTable(passengers, database);
const first = performance.now() - imports - node;
await ensureTable(passengers, database); // the same over a connection that is there
const schema = performance.now() - first - imports - node;
const connect = first - schema;
await database.end();
process.stdout.write(JSON.stringify({ node, imports, connect, schema }));

export {};
