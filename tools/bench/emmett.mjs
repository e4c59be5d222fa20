// Appends to emmett's event store as driver.go orders, a line of JSON each way. BENCH_URL names the database.
import { createInterface } from 'node:readline';
import { getPostgreSQLEventStore } from '@event-driven-io/emmett-postgresql';
import pg from 'pg';

const streams = 5000;
const text = 'x'.repeat(209);
const pool = new pg.Pool({ connectionString: process.env.BENCH_URL, max: 40 });
const store = getPostgreSQLEventStore(process.env.BENCH_URL, { connectionOptions: { pool } });
await store.schema.migrate();

async function run({ writers, batch, seconds }, turn) {
  const began = performance.now();
  const end = began + seconds * 1000;
  let events = 0;
  const write = async (w) => {
    const mine = Math.max(1, Math.floor(streams / writers));
    const versions = new Array(mine).fill(0n);
    for (let n = 0; performance.now() < end; n++) {
      const k = (n * 7) % mine;
      const expected = versions[k] === 0n ? 'STREAM_DOES_NOT_EXIST' : versions[k];
      const done = await store.appendToStream(
        `build-${process.pid}-${turn}-${w}-${k}`,
        Array.from({ length: batch }, () => ({ type: 'LayerCached', data: { text } })),
        { expectedStreamVersion: expected },
      );
      versions[k] = done.nextExpectedStreamVersion;
      events += batch;
    }
  };
  await Promise.all(Array.from({ length: writers }, (_, w) => write(w)));
  return { events, seconds: (performance.now() - began) / 1000 };
}

console.log('ready');
let turn = 0;
for await (const line of createInterface({ input: process.stdin })) {
  try {
    console.log(JSON.stringify(await run(JSON.parse(line), turn++)));
  } catch (error) {
    console.log(JSON.stringify({ events: 0, seconds: 1, error: String(error) }));
  }
}
await store.close();
await pool.end();
