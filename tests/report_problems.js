() => {
  const problems = [], wide = document.documentElement.clientWidth;
  const needed = document.documentElement.scrollWidth;
  if (needed > wide) problems.push(`the page is ${needed} wide`);
  for (const e of document.querySelectorAll('main *')) {
    const box = e.getBoundingClientRect();
    const sticks = box.width && (box.right > wide + 1 || box.left < -1);
    if (sticks && !e.closest('.wide, pre')) problems.push(`${e.tagName} sticks out`);
  }
  for (const image of document.images) {
    if (!image.complete || !image.naturalWidth) problems.push('a picture is missing');
    if (!image.alt) problems.push('a picture has no text');
  }
  for (const plot of document.querySelectorAll('svg'))
    if (plot.getAttribute('role') !== 'img' || !plot.getAttribute('aria-label')) problems.push('a plot has no text');
  for (const text of document.querySelectorAll('svg text')) {
    const box = text.getBBox(), view = text.ownerSVGElement.viewBox.baseVal;
    if (box.x < 0 || box.x + box.width > view.width + 1) problems.push(`cut off: ${text.textContent}`);
  }
  for (const link of document.querySelectorAll('a'))
    if (!document.querySelector(link.hash)) problems.push(`no ${link.hash}`);
  for (const bar of document.querySelectorAll('.bar, svg'))
    if (bar.getBoundingClientRect().width < Math.min(wide * 0.7, 400)) problems.push('a plot is squeezed');
  let level = 0;
  for (const heading of document.querySelectorAll('h1, h2, h3, h4')) {
    const own = +heading.tagName[1];
    if (own > level + 1) problems.push(`h${own} after h${level}`);
    level = own;
  }
  return problems;
}
