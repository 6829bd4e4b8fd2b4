// `node main.js tour` and `node main.js load N`; what they do is in ../../README.md.

import { connect, type Recalld } from "./connection.js";
import { load } from "./load.js";
import { tour } from "./tour.js";

const [command, calls, ...rest] = process.argv.slice(2);
if (command === "tour" && calls === undefined) {
  await print(tour);
} else if (command === "load" && /^\d+$/.test(calls ?? "") && rest.length === 0) {
  await print(async ({ memory }) => ({ acknowledged: await load(memory, Number(calls)) }));
} else {
  console.error("usage: main.js tour | load N");
  process.exitCode = 2;
}

async function print(see: (recalld: Recalld) => Promise<object>): Promise<void> {
  const recalld = connect();
  try {
    console.log(JSON.stringify(await see(recalld)));
  } finally {
    recalld.close();
  }
}
