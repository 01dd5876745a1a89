/**
 * Makes things one after the other, each while the one before is used: there are two at most. `discard` gets every one that was
 * made, once the next is asked for or nobody wants more.
 */
export async function* madeAhead<Item>(
  count: number,
  make: (index: number) => Promise<Item>,
  discard: (item: Item) => void,
): AsyncGenerator<Item, void, undefined> {
  const begin = (index: number): Promise<Item> | undefined => {
    const making = index < count ? make(index) : undefined;
    making?.catch(() => {}); // whoever awaits it gets the error, which may be later
    return making;
  };
  let next = begin(0);
  try {
    for (let index = 0; next; index++) {
      const item: Item = await next;
      next = begin(index + 1);
      try {
        yield item;
      } finally {
        discard(item);
      }
    }
  } finally {
    await next?.then(discard, () => {});
  }
}
