// Shows the figures of one moment under the pointer, or by the arrow keys. The page is whole without it.
(function () {
  'use strict';
  var data = JSON.parse(document.getElementById('data').textContent);
  var figure = document.querySelector('figure');
  var tip = document.querySelector('.tip');
  function clock(ms) {
    var s = Math.floor(ms / 1000), h = Math.floor(s / 3600), m = Math.floor(s % 3600 / 60);
    var two = function (n) { return (n < 10 ? '0' : '') + n; };
    return (h ? h + ':' + two(m) : m) + ':' + two(s % 60);
  }
  function fixed(n) { return n.toFixed(1).replace(/\.0$/, ''); }
  var units = {
    rate: function (n) { return fixed(n) + '/s'; },
    count: String,
    latency: function (n) { return n < 9.95 ? fixed(n) + ' ms' : n < 999.5 ? n.toFixed(0) + ' ms' : fixed(n / 1000) + ' s'; },
    bytes: function (n) {
      var unit = 0;
      while (n >= 1024 && unit < 5) { n /= 1024; unit += 1; }
      return (unit && n < 100 ? n.toFixed(1) : n.toFixed(0)) + ' ' + ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'][unit];
    }
  };
  function put(parent, tag, text) {
    var node = document.createElement(tag);
    node.textContent = text;
    parent.appendChild(node);
    return node;
  }
  function fill(row, at) {
    tip.textContent = '';
    put(tip, 'b', clock(row[0]) + ' to ' + clock(row[1]));
    var list = put(tip, 'dl', '');
    data.columns.forEach(function (column, n) {
      var value = row[n + 2];
      if (value === null || (column.quiet && value === 0)) { return; }
      put(list, 'dt', column.name);
      put(list, 'dd', units[column.unit](value));
    });
    var leader = null;
    data.leaders.forEach(function (one) { if (one[0] <= at) { leader = one[1]; } });
    if (data.leaders.length) { put(list, 'dt', 'leader'); put(list, 'dd', leader || 'nobody'); }
    var now = data.faults.filter(function (fault) { return fault[1] <= row[1] && fault[2] >= row[0]; });
    now.slice(0, 4).forEach(function (fault) { put(tip, 'p', fault[0]); });
    if (now.length > 4) { put(tip, 'p', 'and ' + (now.length - 4) + ' more faults'); }
  }
  document.querySelectorAll('svg[data-left]').forEach(function (svg) {
    var left = +svg.dataset.left, right = +svg.dataset.right, end = +svg.dataset.end;
    var width = svg.viewBox.baseVal.width, cross = svg.querySelector('.cross'), rows = data[svg.classList[0]];
    var at = 0;
    function hide() { tip.hidden = true; cross.setAttribute('visibility', 'hidden'); }
    function show(y) {
      if (!rows.length) { return; }
      var row = rows.filter(function (one) { return one[0] <= at && at <= one[1]; })[0] || rows[rows.length - 1];
      var x = left + (right - left) * at / end, box = svg.getBoundingClientRect();
      cross.setAttribute('x1', x); cross.setAttribute('x2', x); cross.setAttribute('visibility', 'visible');
      fill(row, at);
      tip.hidden = false;
      var shown = x / width * box.width, over = shown + tip.offsetWidth + 24 > box.width;
      tip.style.left = Math.max(0, over ? shown - tip.offsetWidth - 14 : shown + 14) + 'px';
      tip.style.top = Math.max(0, Math.min(y, figure.offsetHeight - tip.offsetHeight)) + 'px';
    }
    svg.addEventListener('pointermove', function (event) {
      var box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * width;
      if (x < left || x > right) { return hide(); }
      at = (x - left) / (right - left) * end;
      show(event.clientY - box.top + 16);
    });
    svg.addEventListener('pointerleave', hide);
    svg.addEventListener('blur', hide);
    svg.addEventListener('keydown', function (event) {
      var step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
      if (event.key === 'Escape') { return hide(); }
      if (!step || !rows.length) { return; }
      event.preventDefault();
      at = Math.min(end, Math.max(0, at + step * end / rows.length));
      show(40);
    });
  });
}());
